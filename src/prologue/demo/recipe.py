"""What the demo trains: sizes, learning rates and schedules as functions of the planned steps.

The constants were found by measurement on 2 CPU cores; everything that the plan does not decide is here.
"""

from __future__ import annotations

from prologue.config import (
    DataConfig,
    OptimizerConfig,
    PriorOptions,
    PriorTraining,
    RunConfig,
    TokenizerConfig,
    TokenizerTraining,
    TransformerConfig,
    Variant,
)
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

TOKENIZER_SHARE = 0.45
"""Part of the training time that goes to stage 1; the rest is stage 2's."""

IMAGE_SIZE = 32
PATCH_SIZE = 4
WIDTH = 128
DEPTH = 4
"""Blocks of the encoder, and as many of the decoder."""
CODEBOOK_SIZE = 512
CODE_DIM = 8
PROLOGUE_TOKENS = 8
PROLOGUE_CODEBOOK_SIZE = 128
STAGE_1_PRIOR = PriorOptions(width=128, depth=1, heads=4)
PRIOR = PriorOptions(width=128, depth=4, heads=4)

TOKENIZER_BATCH = 8
"""At equal images seen, 8 a step gave 23.8 dB where 16 gave 19.9 and 32 gave 19.3: the number of updates decides."""
PRIOR_BATCH = 32
TOKENIZER_LR = 1e-3
STAGE_1_PRIOR_LR = 1e-3
PRIOR_LR = 2e-3
WARMUP_SHARE = 0.08
HOLD_SHARE = 0.25
"""Part of the updates at the peak; then the rate decays to a twentieth of it."""
HALF_LIFE_SHARE = 0.02
KMEANS_AT = (0.05, 0.16)
"""Parts of stage 1 after which the prologue codebook is set to the encoder's own outputs."""
REVIVE_EVERY = 20

IMAGES_PER_MINUTE = 800
"""Training scenes for each minute of the budget: each costs rendering once and encoding once."""
MOST_IMAGES = 20_000
VALIDATION_IMAGES = 1024
"""As many as a prologue's figures need not to be indicative (METHOD §1)."""

CHECKPOINT_SECONDS = 30.0
SNAPSHOTS = 4
"""Sample grids of each stage."""
LOGGED = 120
"""Points of each training curve."""

UNGUIDED: tuple[Recipe, ...] = (Recipe(), Recipe(temperature=0.9))
GUIDED: tuple[Recipe, ...] = tuple(
    Recipe(guidance=Guidance.overall("constant", scale), temperature=temperature)
    for scale in (1.5, 2.0, 3.0)
    for temperature in (1.0, 0.9)
)
"""Recipes that the demo tries with few samples each before it measures."""


def training_images(minutes: float) -> int:
    """Training scenes for a budget, in whole rounds of the eight classes."""
    return max(256, min(MOST_IMAGES, int(IMAGES_PER_MINUTE * minutes)) // 8 * 8)


def demo_config(
    tokenizer_steps: int, prior_steps: int, minutes: float, *, variant: Variant = "prologue", seed: int = 0
) -> RunConfig:
    """The demo's run of so many steps within `minutes`; `variant` "2d" is the same without a prologue."""
    has_prologue = variant == "prologue"
    stack = TransformerConfig(WIDTH, DEPTH, WIDTH // 32)
    return RunConfig(
        seed=seed,
        precision="auto",
        data=DataConfig(
            crop="center",
            flip=False,
            token_views="center",
            shapes_images=training_images(minutes),
            shapes_validation=VALIDATION_IMAGES,
        ),
        tokenizer=TokenizerConfig(
            variant=variant,
            image_size=(IMAGE_SIZE, IMAGE_SIZE),
            patch_size=PATCH_SIZE,
            encoder=stack,
            decoder=stack,
            code_dim=CODE_DIM,
            codebook_size=CODEBOOK_SIZE,
            prologue_tokens=PROLOGUE_TOKENS if has_prologue else 0,
            prologue_codebook_size=PROLOGUE_CODEBOOK_SIZE,
        ),
        prior=PRIOR,
        tokenizer_training=_tokenizer_training(tokenizer_steps, has_prologue),
        prior_training=PriorTraining(
            steps=prior_steps,
            batch=PRIOR_BATCH,
            optimizer=_optimizer(PRIOR_LR, prior_steps, betas=(0.9, 0.96), weight_decay=0.03, clip=1.0),
            ema_half_life=_half_life(prior_steps),
        ),
        checkpoint_every=_every(tokenizer_steps + prior_steps, 60 * minutes / CHECKPOINT_SECONDS),
        log_every=_every(min(tokenizer_steps, prior_steps), LOGGED),
        sample_every=_every(max(tokenizer_steps, prior_steps), SNAPSHOTS),
    )


def _tokenizer_training(steps: int, has_prologue: bool) -> TokenizerTraining:
    return TokenizerTraining(
        steps=steps,
        batch=TOKENIZER_BATCH,
        autoencoder=_optimizer(TOKENIZER_LR, steps, betas=(0.9, 0.99), clip=1.0),
        prior=_optimizer(STAGE_1_PRIOR_LR, steps, betas=(0.9, 0.99), weight_decay=0.03),
        prior_model=STAGE_1_PRIOR,
        ema_half_life=_half_life(steps),
        prior_ema_half_life=_half_life(steps),
        perceptual="none",
        gan=0.0,
        ce_prologue=3.0 if has_prologue else 0.0,
        ce_visual=3.0 if has_prologue else 0.0,
        visual_dropout=0.5 if has_prologue else 0.0,
        shared_prior_pass=has_prologue,
        revive_every=REVIVE_EVERY,
        prologue_kmeans=tuple(sorted({max(1, round(part * steps)) for part in KMEANS_AT})) if has_prologue else (),
    )


def _optimizer(
    lr: float, steps: int, betas: tuple[float, float], weight_decay: float = 0.0, clip: float = 0.0
) -> OptimizerConfig:
    return OptimizerConfig(
        lr=lr,
        final_lr=round(lr / 20, 9),
        warmup=int(WARMUP_SHARE * steps),
        hold=int(HOLD_SHARE * steps),
        betas=betas,
        weight_decay=weight_decay,
        clip=clip,
    )


def _half_life(steps: int) -> float:
    return max(1.0, HALF_LIFE_SHARE * steps)


def _every(steps: int, times: float) -> int:
    """The interval at which `steps` are divided into about `times` parts."""
    return max(1, round(steps / max(1.0, times)))
