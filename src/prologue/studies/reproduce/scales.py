"""The scales of `prologue reproduce`: network sizes, steps, numbers of images, and the values of the sweep.

All variants share one `Scale`, so that their budgets are equal by construction.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from prologue.config import RunConfig, Variant
from prologue.data.source import ENDLESS, embedded_name
from prologue.errors import ConfigError
from prologue.evaluation.recipe_search import Plan
from prologue.presets import small
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

Name = Literal["2d", "1d", "prologue", "prologue-post", "one-stage"]
VARIANTS: tuple[Name, ...] = ("2d", "1d", "prologue", "prologue-post", "one-stage")
"""The variants in the order of the tables."""


@dataclass(frozen=True)
class Scale:
    """The sizes, budgets and numbers of images of all variants."""

    seeds: int
    """The default of `--seeds`."""
    image_size: int
    patch_size: int
    width: int
    depth: int
    """Blocks of the encoder, and of the decoder."""
    prior_width: int
    prior_depth: int
    """Blocks of the prior in stage 2. The prior of stage 1 has a quarter."""
    codebook_size: int
    code_dim: int
    prologue_tokens: int
    prologue_codebook_size: int
    tokenizer_steps: int
    tokenizer_batch: int
    tokenizer_lr: float
    prior_steps: int
    prior_batch: int
    prior_lr: float
    prior_dropout: float
    """Dropout of the prior in stage 2. 0 if each image is seen too rarely to overfit."""
    shapes_images: int
    shapes_validation: int
    validation_fraction: float
    """Part of the images that is held out, for data other than `shapes`."""
    temperatures: tuple[float, ...]
    """Temperatures of the sweep without guidance."""
    guidance_scales: tuple[float, ...]
    """Scales of the constant guidance in the sweep, each combined with all `guided_temperatures`."""
    guided_temperatures: tuple[float, ...]
    sweep_samples: int
    """Samples of each recipe. The best `finalists` are measured again with twice as many."""
    finalists: int
    samples: int
    """Samples for gFD and gKID, limited to twice the number of training images."""
    measured_images: int
    """Largest number of held-out images for reconstruction, likelihood and probe."""
    probe_images: int
    """Largest number of training images for probes."""
    layout_images: int
    layout_per: int
    checkpoint_every: int
    batch: int = 64
    """Images per batch when sampling and measuring."""

    def recipes(self, guided: bool) -> list[Recipe]:
        """The recipes that the sweep compares."""
        if not guided:
            return [Recipe(temperature=value) for value in self.temperatures]
        return [
            Recipe(guidance=Guidance.overall("constant", scale), temperature=value)
            for scale in self.guidance_scales
            for value in self.guided_temperatures
        ]

    @property
    def sweep(self) -> Plan:
        return Plan("grid", self.sweep_samples, 2 * self.sweep_samples, self.finalists)


FEW_IMAGES_DROPOUT = 0.1
"""Dropout of the prior in stage 2 for data with few images per step, which is all data but embedded images."""

_MINUTES = Scale(
    seeds=2, image_size=16, patch_size=4, width=32, depth=1, prior_width=32, prior_depth=1, codebook_size=64,
    code_dim=8, prologue_tokens=4, prologue_codebook_size=16, tokenizer_steps=400, tokenizer_batch=8, tokenizer_lr=1e-3,
    prior_steps=300, prior_batch=16, prior_lr=1e-3, prior_dropout=0.0, shapes_images=512, shapes_validation=128,
    validation_fraction=0.2, temperatures=(1.0, 0.9), guidance_scales=(1.5, 2.0), guided_temperatures=(1.0,),
    sweep_samples=32, finalists=1, samples=128, measured_images=128, probe_images=512, layout_images=16, layout_per=2,
    checkpoint_every=100,
)  # fmt: skip

# At this size reconstructions are nearly perfect and samples are not, so that variants can differ in their samples.
_HOURS = Scale(
    seeds=4, image_size=24, patch_size=4, width=96, depth=3, prior_width=96, prior_depth=4, codebook_size=512,
    code_dim=8, prologue_tokens=8, prologue_codebook_size=64, tokenizer_steps=6000, tokenizer_batch=8,
    tokenizer_lr=1e-3, prior_steps=3000, prior_batch=16, prior_lr=2e-3, prior_dropout=0.0, shapes_images=20_000,
    shapes_validation=4096, validation_fraction=0.2, temperatures=(1.3, 1.2, 1.1, 1.0, 0.9, 0.8),
    guidance_scales=(1.25, 1.5, 2.0, 3.0), guided_temperatures=(1.1, 1.0, 0.9), sweep_samples=256, finalists=2,
    samples=10_000, measured_images=2048, probe_images=8000, layout_images=64, layout_per=4, checkpoint_every=500,
)  # fmt: skip

# To be tuned: small enough that a checkpoint fits into the packed state beside the models that its run takes.
_GPU = dataclasses.replace(
    _HOURS, seeds=3, image_size=32, patch_size=4, width=128, depth=3, prior_width=128, prior_depth=4,
    codebook_size=1024, code_dim=12, prologue_codebook_size=128, tokenizer_steps=10_000, tokenizer_batch=64,
    prior_steps=10_000, prior_batch=128, prior_dropout=FEW_IMAGES_DROPOUT, shapes_images=50_000,
    shapes_validation=10_000, sweep_samples=1024, measured_images=10_000, probe_images=20_000,
    layout_images=256, checkpoint_every=1000, batch=500,
)  # fmt: skip

SCALES: dict[str, Scale] = {"minutes": _MINUTES, "hours": _HOURS, "gpu": _GPU}
"""`minutes` is a smoke test; `hours` takes hours on two CPU cores; `gpu` is for one GPU."""


def scale_named(name: str, data: str = "shapes") -> Scale:
    """The named scale for the images `data`. Raises `ConfigError` for an unknown name."""
    if name not in SCALES:
        raise ConfigError(f"unknown scale {name!r}: choose one of {', '.join(SCALES)}")
    return (
        SCALES[name]
        if embedded_name(data) in ENDLESS
        else dataclasses.replace(SCALES[name], prior_dropout=FEW_IMAGES_DROPOUT)
    )


def run_config(scale: Scale, name: Name, seed: int) -> RunConfig:
    """The run of a variant and seed. `one-stage` is `prologue` with a class-conditional stage-1 prior for sampling."""
    variant: Variant = "prologue" if name == "one-stage" else name
    config = small(
        variant=variant,
        image_size=scale.image_size,
        patch_size=scale.patch_size,
        width=scale.width,
        depth=scale.depth,
        prior_width=scale.prior_width,
        prior_depth=scale.prior_depth,
        codebook_size=scale.codebook_size,
        code_dim=scale.code_dim,
        prologue_tokens=scale.prologue_tokens,
        prologue_codebook_size=scale.prologue_codebook_size,
        tokenizer_steps=scale.tokenizer_steps,
        prior_steps=scale.prior_steps,
        batch=scale.tokenizer_batch,
        prior_batch=scale.prior_batch,
        lr=scale.tokenizer_lr,
        prior_lr=scale.prior_lr,
        shapes_images=scale.shapes_images,
        shapes_validation=scale.shapes_validation,
        checkpoint_every=scale.checkpoint_every,
    )
    data = dataclasses.replace(
        config.data,
        crop="center",
        flip=False,
        token_views="center",
        validation_fraction=scale.validation_fraction,
    )
    if name == "one-stage":
        training = dataclasses.replace(config.tokenizer_training, one_stage=True, label_drop=0.1)
        config = dataclasses.replace(config, tokenizer_training=training)
    prior = dataclasses.replace(config.prior, dropout=scale.prior_dropout)
    return dataclasses.replace(config, seed=seed, data=data, prior=prior, sample_every=0, keep_checkpoints=1)


def plain_config(scale: Scale, seed: int) -> RunConfig:
    """A prior without a prologue on the tokens of the `prologue` run. The gain is measured against it."""
    config = run_config(scale, "prologue", seed)
    return dataclasses.replace(config, prior=dataclasses.replace(config.prior, prologue=False))
