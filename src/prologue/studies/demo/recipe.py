"""The configuration of the demo: the small recipe (`prologue.presets.small`) with the schedule of a short run.

The constants were measured on two CPU cores.
"""

from __future__ import annotations

import dataclasses

from prologue.config import OptimizerConfig, RunConfig, Variant
from prologue.presets import small
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

TOKENIZER_SHARE = 0.45
"""Part of the training time for stage 1. The rest is for stage 2."""
PRIOR_LR = 2e-3
CE = 3.0
"""The weight of the cross-entropy, as in the paper. The weight of the small recipe gives better reconstructions and
unguided samples, but worse guided samples."""
WARMUP_SHARE = 0.08
HOLD_SHARE = 0.25
"""Part of the updates at the peak learning rate. It then decays to a twentieth."""
KMEANS_AT = (0.05, 0.16)
"""Parts of stage 1 after which k-means resets the prologue codebook to the outputs of the encoder."""

IMAGES_PER_MINUTE = 800
"""Training scenes per minute of the budget. Each is rendered once and encoded once."""
MOST_IMAGES = 20_000
VALIDATION_IMAGES = 1024
"""Enough for figures of a prologue that are not only indicative (METHOD §1)."""
CHECKPOINT_SECONDS = 30.0
SNAPSHOTS = 4
"""Sample grids per stage."""
LOGGED = 120
"""Points of each training curve."""

RECIPE = Recipe(guidance=Guidance.overall("constant", 2.0), temperature=0.9)
"""The default sampling recipe of the demo's runs."""


def training_images(minutes: float) -> int:
    """Number of training scenes for a budget, a multiple of the eight classes."""
    return max(256, min(MOST_IMAGES, int(IMAGES_PER_MINUTE * minutes)) // 8 * 8)


def demo_config(
    tokenizer_steps: int, prior_steps: int, minutes: float, *, variant: Variant = "prologue", seed: int = 0
) -> RunConfig:
    """The configuration of a run with these steps. Variant "2d" is the same run without a prologue."""
    config = small(
        variant=variant,
        tokenizer_steps=tokenizer_steps,
        prior_steps=prior_steps,
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
        # Scenes are rendered at this size. There are so many that no augmentation is needed.
        data=dataclasses.replace(config.data, crop="center", flip=False, token_views="center"),
        prior=dataclasses.replace(config.prior, dropout=0.0),
        tokenizer_training=stage_1,
        prior_training=stage_2,
        log_every=_every(min(tokenizer_steps, prior_steps), LOGGED),
        sample_every=_every(max(tokenizer_steps, prior_steps), SNAPSHOTS),
    )


def _long_hold(optimizer: OptimizerConfig, steps: int) -> OptimizerConfig:
    """The schedule of a short run: a longer warm-up, a longer hold, and a lower final learning rate."""
    return dataclasses.replace(
        optimizer,
        final_lr=round(optimizer.lr / 20, 9),
        warmup=int(WARMUP_SHARE * steps),
        hold=int(HOLD_SHARE * steps),
    )


def _every(steps: int, times: float) -> int:
    """The interval that divides `steps` into about `times` parts."""
    return max(1, round(steps / max(1.0, times)))
