"""The named configurations: the paper's (METHOD §7, §8) and small ones that train on a CPU.

Paper names are TOKENIZER-PRIOR (`base-b`, `large-xl`). A preset fixes sizes and schedule; any data works with any
preset, and the class count comes from the data. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prologue.config import (
    VARIANTS,
    DataConfig,
    OptimizerConfig,
    Perceptual,
    PriorOptions,
    PriorTraining,
    RunConfig,
    TokenizerConfig,
    TokenizerTraining,
    TransformerConfig,
    Variant,
)
from prologue.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Preset:
    """A configuration, built when it is asked for, and whom it serves."""

    build: Callable[[], RunConfig]
    purpose: str


def preset(name: str) -> RunConfig:
    """The configuration of this name; an unknown one is a `ConfigError` with the nearest match and the list."""
    return _find(name).build()


def names() -> list[str]:
    """All preset names, the small ones first."""
    return list(PRESETS)


def describe(name: str) -> str:
    """For whom a preset is, in one line."""
    return _find(name).purpose


def _find(name: str) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: {did_you_mean(name, PRESETS)}Presets are {', '.join(PRESETS)}")
    return PRESETS[name]


# The paper's models, ImageNet at 256 px

_PRIORS = {
    "s": PriorOptions(width=512, depth=10, heads=8, tied=True, dropout=0.1),
    "b": PriorOptions(width=768, depth=12, heads=12, dropout=0.1),
    "l": PriorOptions(width=1024, depth=24, heads=16, dropout=0.1),
    "xl": PriorOptions(width=1280, depth=32, heads=20, dropout=0.1),
}

_STAGE_1_PRIOR = PriorOptions(width=512, depth=7, heads=8)

_POST_ENCODER = TransformerConfig(width=512, depth=10, heads=8, mlp_ratio="11/4")


def _paper(tokenizer: TokenizerConfig, prior: PriorOptions, training: TokenizerTraining) -> RunConfig:
    return RunConfig(
        precision="bf16",
        # ImageNet's own validation images are apart from its training folder: hold out just enough to follow a run.
        data=DataConfig(validation_fraction=0.01),
        tokenizer=tokenizer,
        prior=prior,
        tokenizer_training=training,
        prior_training=PriorTraining(),
        checkpoint_every=5000,
        log_every=100,
        sample_every=10_000,
    )


def _two_stage(size: str, prior: str) -> RunConfig:
    """`base-*` and `large-*`."""
    if size == "large":
        tokenizer = TokenizerConfig(decoder=TransformerConfig(1024, 24, 16), codebook_size=4096)
        return _paper(tokenizer, _PRIORS[prior], _paper_training(perceptual="convnext"))
    return _paper(TokenizerConfig(), _PRIORS[prior], _paper_training())


def _baseline(variant: Variant) -> RunConfig:
    """`2d-b` and `1d-b`: no prologue, so no cross-entropy reaches the encoder and there is nothing to drop."""
    tokenizer = TokenizerConfig(variant=variant, prologue_tokens=0)
    training = _paper_training(steps=750_000, ce_prologue=0.0, ce_visual=0.0, visual_dropout=0.0)
    return _paper(tokenizer, _PRIORS["b"], training)


def _post_hoc() -> RunConfig:
    """`post-b`: prologue tokens for a frozen `2d` tokenizer; only the cross-entropy terms are left."""
    tokenizer = TokenizerConfig(variant="prologue-post", prologue_encoder=_POST_ENCODER)
    training = _paper_training(steps=1_300_000, perceptual="none", l1=0.0, gan=0.0, vq=0.0)
    return _paper(tokenizer, _PRIORS["b"], training)


def _one_stage() -> RunConfig:
    """`one-stage-b`: the base tokenizer, whose stage-1 prior sees the classes and is shipped."""
    return _paper(TokenizerConfig(), _STAGE_1_PRIOR, _paper_training(label_drop=0.1, one_stage=True))


def _paper_training(
    *,
    steps: int = 1_000_000,
    perceptual: Perceptual = "lpips",
    l1: float = 1.0,
    gan: float = 0.1,
    vq: float = 1.0,
    ce_prologue: float = 3.0,
    ce_visual: float = 3.0,
    visual_dropout: float = 0.5,
    label_drop: float = 1.0,
    one_stage: bool = False,
) -> TokenizerTraining:
    """METHOD §7; a step here is one batch, which the paper counts as two alternating steps."""
    return TokenizerTraining(
        steps=steps,
        batch=256,
        autoencoder=OptimizerConfig(betas=(0.0, 0.99), weight_decay=0.0),
        prior=OptimizerConfig(betas=(0.9, 0.99), weight_decay=0.03),
        discriminator=OptimizerConfig(betas=(0.0, 0.99), weight_decay=1e-4),
        prior_model=_STAGE_1_PRIOR,
        ema_half_life=1000,
        prior_ema_half_life=2500,
        l1=l1,
        perceptual=perceptual,
        gan=gan,
        lecam=0.001,
        r1=0.01,
        r1_every=25,
        vq=vq,
        ce_prologue=ce_prologue,
        ce_visual=ce_visual,
        visual_dropout=visual_dropout,
        label_drop=label_drop,
        one_stage=one_stage,
    )


# Small models

_KMEANS_PARTS = (0.05, 0.16, 0.3)
"""Parts of stage 1 after which the prologue codebook is set to the encoder's own outputs. Once is too few: early they
hardly depend on the image, and the prologue falls back to one code while the prior has not learnt to read it. Without,
the prologue says half as much, and guided samples lie farther from the images (docs/study.md)."""

_SMALL_CE = 0.1
"""Weight of the cross-entropy, a thirtieth of the paper's: without perceptual and adversarial terms beside it, 3 costs
half a decibel, and samples lie farther from the images. What only the cross-entropy trains, queries and codebook of the
prologue, learns as fast, since Adam does not care for the size of gradients. At 0.3 reconstructions are worse and
guided samples lie farther too, by the ablation in docs/study.md; 0.03 is not clearly better."""


def small(
    *,
    variant: Variant = "prologue",
    image_size: int = 32,
    patch_size: int = 4,
    width: int = 128,
    depth: int = 4,
    prior_width: int = 128,
    prior_depth: int = 4,
    codebook_size: int = 512,
    code_dim: int = 8,
    prologue_tokens: int = 8,
    prologue_codebook_size: int = 128,
    tokenizer_steps: int = 20_000,
    prior_steps: int = 10_000,
    batch: int = 8,
    prior_batch: int = 32,
    lr: float = 1e-3,
    prior_lr: float = 1e-3,
    shapes_images: int = 20_000,
    shapes_validation: int = 2000,
    checkpoint_every: int = 500,
) -> RunConfig:
    """A configuration for a CPU or a small GPU, in any of the four variants.

    It differs from the paper where that would collapse or stall at this size: dead visual codes are revived, the
    prologue codebook starts from the encoder's own outputs, there is no perceptual or adversarial term, EMA half-lives
    are a fiftieth of the updates, and the prior is kept that does best on held-out images. Heads have 32 dims. Batches
    are small, since updates decide: at equal images seen, 8 a step gave 23.8 dB where 16 gave 19.9 and 32 gave 19.3
    (32 px, 19,200 images).
    """
    has_prologue, frozen_visual = VARIANTS[variant].has_prologue, VARIANTS[variant].post_hoc
    stack = TransformerConfig(width, depth, width // 32)
    tokenizer = TokenizerConfig(
        variant=variant,
        image_size=(image_size, image_size),
        patch_size=patch_size,
        encoder=stack,
        decoder=stack,
        prologue_encoder=TransformerConfig(width, depth, width // 32, "11/4") if frozen_visual else None,
        code_dim=code_dim,
        codebook_size=codebook_size,
        prologue_tokens=prologue_tokens if has_prologue else 0,
        # Without a prologue this value stands for nothing; the baselines keep it so that only what differs differs.
        prologue_codebook_size=prologue_codebook_size,
    )
    training = TokenizerTraining(
        steps=tokenizer_steps,
        batch=batch,
        autoencoder=_small_optimizer(lr, tokenizer_steps, betas=(0.9, 0.99), clip=1.0),
        prior=_small_optimizer(lr, tokenizer_steps, betas=(0.9, 0.99), weight_decay=0.03),
        discriminator=_small_optimizer(lr, tokenizer_steps, betas=(0.0, 0.99), weight_decay=1e-4),
        prior_model=PriorOptions(width=prior_width, depth=max(1, prior_depth // 4), heads=prior_width // 32),
        ema_half_life=_small_half_life(tokenizer_steps),
        prior_ema_half_life=_small_half_life(tokenizer_steps),
        l1=0.0 if frozen_visual else 1.0,
        perceptual="none",
        gan=0.0,
        vq=0.0 if frozen_visual else 1.0,
        ce_prologue=_SMALL_CE if has_prologue else 0.0,
        ce_visual=_SMALL_CE if has_prologue else 0.0,
        visual_dropout=0.5 if has_prologue else 0.0,
        shared_prior_pass=has_prologue,
        revive_every=0 if frozen_visual else 20,
        prologue_kmeans=tuple(max(1, round(part * tokenizer_steps)) for part in _KMEANS_PARTS) if has_prologue else (),
    )
    return RunConfig(
        precision="auto",
        data=DataConfig(shapes_images=shapes_images, shapes_validation=shapes_validation),
        tokenizer=tokenizer,
        prior=PriorOptions(width=prior_width, depth=prior_depth, heads=prior_width // 32, dropout=0.1),
        tokenizer_training=training,
        prior_training=PriorTraining(
            steps=prior_steps,
            batch=prior_batch,
            optimizer=_small_optimizer(prior_lr, prior_steps, betas=(0.9, 0.96), weight_decay=0.03, clip=1.0),
            ema_half_life=_small_half_life(prior_steps),
            keep_best_every=max(1, prior_steps // 20),
        ),
        checkpoint_every=checkpoint_every,
        sample_every=checkpoint_every,
    )


def _small_optimizer(
    lr: float, steps: int, betas: tuple[float, float], weight_decay: float = 0.0, clip: float = 0.0
) -> OptimizerConfig:
    """Warm-up over a twentieth, hold for a tenth, then decay to a tenth: the paper's shape on a short schedule."""
    return OptimizerConfig(
        lr=lr,
        final_lr=round(lr / 10, 9),
        warmup=steps // 20,
        hold=steps // 10,
        betas=betas,
        weight_decay=weight_decay,
        clip=clip,
    )


def _small_half_life(steps: int) -> float:
    return max(1.0, steps / 50)


_SMOKE = partial(
    small,
    width=64,
    depth=2,
    prior_width=64,
    prior_depth=2,
    codebook_size=128,
    prologue_tokens=4,
    prologue_codebook_size=32,
    tokenizer_steps=200,
    prior_steps=200,
    batch=8,
    prior_batch=16,
    shapes_images=1000,
    shapes_validation=200,
    checkpoint_every=100,
)

_SMALL_64 = partial(
    small,
    image_size=64,
    patch_size=8,
    width=192,
    depth=6,
    prior_width=192,
    prior_depth=6,
    codebook_size=1024,
    code_dim=12,
    prologue_codebook_size=256,
    tokenizer_steps=60_000,
    prior_steps=30_000,
)


_BUILTIN_CE = 0.3
"""What the shipped weights were trained with."""


def _builtin() -> RunConfig:
    """The run of `builtin:shapes` (tools/builtin_shapes.py). Its scenes are many, so nothing else varies them."""
    config = small(
        prior_width=160,
        prior_depth=6,
        tokenizer_steps=12_000,
        prior_steps=7000,
        prior_lr=1.5e-3,
        shapes_images=60_000,
        shapes_validation=2048,
    )
    data = dataclasses.replace(config.data, crop="center", flip=False, token_views="center")
    return dataclasses.replace(
        config,
        data=data,
        prior=dataclasses.replace(config.prior, dropout=0.0),
        tokenizer_training=dataclasses.replace(
            config.tokenizer_training, ce_prologue=_BUILTIN_CE, ce_visual=_BUILTIN_CE
        ),
        prior_training=dataclasses.replace(config.prior_training, keep_best_every=0),
        log_every=100,
        sample_every=0,
    )


_SIZES = {"s": "S", "b": "B", "l": "L", "xl": "XL"}

PRESETS: dict[str, Preset] = {
    "shapes-smoke": Preset(_SMOKE, "trying it out: a minute on 2 cores"),
    "small-32": Preset(small, "icons and thumbnails, on a CPU"),
    "small-64": Preset(_SMALL_64, "small pictures, a CPU overnight or a GPU"),
    "builtin-shapes": Preset(_builtin, "the model that comes with the package: an hour or two on 2 cores"),
    "small-32-2d": Preset(partial(small, variant="2d"), "comparing with small-32: no prologue"),
    "small-32-1d": Preset(partial(small, variant="1d"), "comparing with small-32: no prologue, 1d"),
    "small-32-post": Preset(partial(small, variant="prologue-post"), "a prologue for a trained small-32-2d"),
    **{
        f"{size}-{prior}": Preset(partial(_two_stage, size, prior), f"paper: {size}, prior {label}")
        for size in ("base", "large")
        for prior, label in _SIZES.items()
    },
    "2d-b": Preset(partial(_baseline, "2d"), "paper: 2d baseline"),
    "1d-b": Preset(partial(_baseline, "1d"), "paper: 1d baseline"),
    "post-b": Preset(_post_hoc, "paper: a prologue for a trained 2d-b"),
    "one-stage-b": Preset(_one_stage, "paper: the stage-1 prior is shipped"),
}
