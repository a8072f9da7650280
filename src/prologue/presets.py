"""The named configurations: the paper's (METHOD §7, §8), and small ones for a CPU.

The paper's names are TOKENIZER-PRIOR (`base-b`, `large-xl`). A preset fixes sizes and schedules. It works with any
data, which give the number of classes. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from prologue.config import (
    VARIANTS,
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
from prologue.errors import ConfigError
from prologue.utils.registry import Registry


@dataclass(frozen=True)
class Preset:
    """A function that builds a configuration, and the purpose of the configuration."""

    build: Callable[[], RunConfig]
    purpose: str

    def __call__(self) -> RunConfig:
        return self.build()


def preset(name: str) -> RunConfig:
    """The configuration of this name.

    Raises:
        ConfigError: the name is unknown, or the caller's own preset does not return a `RunConfig`.
    """
    config = PRESETS.get(name)()
    if not isinstance(config, RunConfig):
        raise ConfigError(f"the preset {name!r} must return a RunConfig, not {type(config).__name__}")
    return config


def names() -> list[str]:
    """All preset names, the small ones first."""
    return list(PRESETS)


def describe(name: str) -> str:
    """The purpose of a preset in one line. For the caller's own preset this is the first line of its docstring."""
    found = PRESETS.get(name)
    return found.purpose if isinstance(found, Preset) else (inspect.getdoc(found) or "").partition("\n")[0]


# The paper's models, ImageNet at 256 px. The defaults of the training configurations are the paper's.

_PRIORS = {
    "s": PriorOptions(width=512, depth=10, heads=8, tied=True, dropout=0.1),
    "b": PriorOptions(width=768, depth=12, heads=12, dropout=0.1),
    "l": PriorOptions(width=1024, depth=24, heads=16, dropout=0.1),
    "xl": PriorOptions(width=1280, depth=32, heads=20, dropout=0.1),
}


def _paper(tokenizer: TokenizerConfig, prior: PriorOptions = _PRIORS["b"], **training: Any) -> RunConfig:
    """A run of the paper. `training` has the fields of the tokenizer's training that differ from the defaults."""
    return RunConfig(
        precision="bf16",
        # ImageNet has validation images of its own. A hundredth of the training images is enough to follow a run.
        data=DataConfig(validation_fraction=0.01),
        tokenizer=tokenizer,
        prior=prior,
        tokenizer_training=TokenizerTraining(**training),
        checkpoint_every=5000,
        log_every=100,
        sample_every=10_000,
    )


def _two_stage(size: str, prior: str) -> RunConfig:
    """`base-*` and `large-*`."""
    if size == "large":
        tokenizer = TokenizerConfig(decoder=TransformerConfig(1024, 24, 16), codebook_size=4096)
        return _paper(tokenizer, _PRIORS[prior], perceptual="convnext")
    return _paper(TokenizerConfig(), _PRIORS[prior])


def _baseline(variant: Variant) -> RunConfig:
    """`2d-b` and `1d-b`, which have no prologue, no cross-entropy for the encoder, and no visual dropout."""
    tokenizer = TokenizerConfig(variant=variant, prologue_tokens=0)
    return _paper(tokenizer, steps=750_000, ce_prologue=0.0, ce_visual=0.0, visual_dropout=0.0)


def _post_hoc() -> RunConfig:
    """`post-b`: prologue tokens for a frozen `2d` tokenizer, trained by the cross-entropy terms alone."""
    encoder = TransformerConfig(width=512, depth=10, heads=8, mlp_ratio="11/4")
    tokenizer = TokenizerConfig(variant="prologue-post", prologue_encoder=encoder)
    return _paper(tokenizer, steps=1_300_000, perceptual="none", l1=0.0, gan=0.0, vq=0.0)


def _one_stage() -> RunConfig:
    """`one-stage-b`: the base tokenizer, whose stage-1 prior sees the classes and is saved as the run's prior."""
    return _paper(TokenizerConfig(), TokenizerTraining().prior_model, label_drop=0.1, one_stage=True)


# Small models

_KMEANS_PARTS = (0.05, 0.16, 0.3)
"""Fractions of stage 1 after which the prologue codebook is set to encoder outputs. One start is not enough: early
outputs hardly depend on the image, and the prologue collapses to one code before the prior has learned to use it.
Without this start the prologue carries half as much information and guided samples have a larger distance
(docs/study.md)."""

_SMALL_CE = 0.1
"""Weight of the cross-entropy; the paper's is 3. Without perceptual and adversarial terms, 3 costs half a decibel and
samples have a larger distance. 0.3 is also worse in both, and 0.03 is not clearly better (docs/study.md). Queries and
codebook of the prologue, which only the cross-entropy trains, learn equally fast, since Adam normalises gradients."""


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
    """A configuration for a CPU or a small GPU, in any variant.

    It changes those settings of the paper that would collapse or stall at this size. Unused visual codes are
    reset, and the prologue codebook starts from encoder outputs. There is no perceptual and no adversarial term. EMA
    half-lives are a fiftieth of the updates, and the prior with the lowest cross-entropy on held-out images is kept.
    Heads have 32 dims. Batches are small, because the number of updates matters most: for 19,200 images of 32 px, a
    batch of 8 gave 23.8 dB, 16 gave 19.9 dB and 32 gave 19.3 dB.
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
        # The baselines have no prologue but keep this value, so that their configurations differ less.
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
        dead_code_reset_every=0 if frozen_visual else 20,
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
    """Warm-up for a twentieth of the steps, hold for a tenth, then decay to a tenth of the peak."""
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


def _builtin() -> RunConfig:
    """The run of `builtin:shapes` (tools/builtin_shapes.py), without augmentation, because there are many scenes."""
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
        tokenizer_training=dataclasses.replace(config.tokenizer_training, ce_prologue=0.3, ce_visual=0.3),
        prior_training=dataclasses.replace(config.prior_training, keep_best_every=0),
        log_every=100,
        sample_every=0,
    )


_BUILT_IN: dict[str, Preset] = {
    "shapes-smoke": Preset(_SMOKE, "trying it out: a minute on 2 cores"),
    "small-32": Preset(small, "icons and thumbnails, on a CPU"),
    "small-64": Preset(_SMALL_64, "small pictures, a CPU overnight or a GPU"),
    "builtin-shapes": Preset(_builtin, "the model that comes with the package: an hour or two on 2 cores"),
    "small-32-2d": Preset(partial(small, variant="2d"), "comparing with small-32: no prologue"),
    "small-32-1d": Preset(partial(small, variant="1d"), "comparing with small-32: no prologue, 1d"),
    "small-32-post": Preset(partial(small, variant="prologue-post"), "a prologue for a trained small-32-2d"),
    **{
        f"{size}-{prior}": Preset(partial(_two_stage, size, prior), f"paper: {size}, prior {prior.upper()}")
        for size in ("base", "large")
        for prior in _PRIORS
    },
    "2d-b": Preset(partial(_baseline, "2d"), "paper: 2d baseline"),
    "1d-b": Preset(partial(_baseline, "1d"), "paper: 1d baseline"),
    "post-b": Preset(_post_hoc, "paper: a prologue for a trained 2d-b"),
    "one-stage-b": Preset(_one_stage, "paper: the stage-1 prior is kept"),
}

PRESETS: Registry[Callable[[], RunConfig]] = Registry("preset", _BUILT_IN)
"""Presets by name; a preset from outside is a function without arguments that returns a `RunConfig`."""
