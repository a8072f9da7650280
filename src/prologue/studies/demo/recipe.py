"""What the demo trains: the small recipe (`prologue.presets.small`) with what so few steps need otherwise.

The constants were found by measurement on 2 CPU cores; everything that the plan does not decide is here.
"""

from __future__ import annotations

import dataclasses

from prologue.config import OptimizerConfig, RunConfig, Variant
from prologue.presets import small
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
PRIOR_WIDTH = 128
PRIOR_DEPTH = 4
"""Blocks of stage 2's prior; stage 1's has a quarter."""

TOKENIZER_BATCH = 8
"""At equal images seen, 8 a step gave 23.8 dB where 16 gave 19.9 and 32 gave 19.3: the number of updates decides."""
PRIOR_BATCH = 32
LR = 1e-3
"""Of everything in stage 1."""
PRIOR_LR = 2e-3
CE = 3.0
"""The paper's weight of the cross-entropy. With the small recipe's 0.1, reconstructions and unguided samples were
better, guided samples and the classes seen in any worse."""
WARMUP_SHARE = 0.08
HOLD_SHARE = 0.25
"""Part of the updates at the peak; then the rate decays to a twentieth of it."""
KMEANS_AT = (0.05, 0.16)
"""Parts of stage 1 after which the prologue codebook is set to the encoder's own outputs."""

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
    config = small(
        variant=variant,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        width=WIDTH,
        depth=DEPTH,
        prior_width=PRIOR_WIDTH,
        prior_depth=PRIOR_DEPTH,
        codebook_size=CODEBOOK_SIZE,
        code_dim=CODE_DIM,
        prologue_tokens=PROLOGUE_TOKENS,
        prologue_codebook_size=PROLOGUE_CODEBOOK_SIZE,
        tokenizer_steps=tokenizer_steps,
        prior_steps=prior_steps,
        batch=TOKENIZER_BATCH,
        prior_batch=PRIOR_BATCH,
        lr=LR,
        prior_lr=PRIOR_LR,
        shapes_images=training_images(minutes),
        shapes_validation=VALIDATION_IMAGES,
        checkpoint_every=_every(tokenizer_steps + prior_steps, 60 * minutes / CHECKPOINT_SECONDS),
    )
    stage_1 = dataclasses.replace(
        config.tokenizer_training,
        autoencoder=_long_hold(config.tokenizer_training.autoencoder, tokenizer_steps),
        prior=_long_hold(config.tokenizer_training.prior, tokenizer_steps),
    )
    if config.tokenizer.traits.has_prologue:
        kmeans = tuple(sorted({max(1, round(part * tokenizer_steps)) for part in KMEANS_AT}))
        stage_1 = dataclasses.replace(stage_1, ce_prologue=CE, ce_visual=CE, prologue_kmeans=kmeans)
    stage_2 = dataclasses.replace(
        config.prior_training, optimizer=_long_hold(config.prior_training.optimizer, prior_steps), keep_best_every=0
    )
    return dataclasses.replace(
        config,
        seed=seed,
        # Scenes are drawn at this size and many: nothing else varies them, and little is learnt by heart.
        data=dataclasses.replace(config.data, crop="center", flip=False, token_views="center"),
        prior=dataclasses.replace(config.prior, dropout=0.0),
        tokenizer_training=stage_1,
        prior_training=stage_2,
        log_every=_every(min(tokenizer_steps, prior_steps), LOGGED),
        sample_every=_every(max(tokenizer_steps, prior_steps), SNAPSHOTS),
    )


def _long_hold(optimizer: OptimizerConfig, steps: int) -> OptimizerConfig:
    """The schedule of a run of minutes: a longer warm-up, a longer hold, and a decay that ends lower."""
    return dataclasses.replace(
        optimizer,
        final_lr=round(optimizer.lr / 20, 9),
        warmup=int(WARMUP_SHARE * steps),
        hold=int(HOLD_SHARE * steps),
    )


def _every(steps: int, times: float) -> int:
    """The interval at which `steps` are divided into about `times` parts."""
    return max(1, round(steps / max(1.0, times)))
