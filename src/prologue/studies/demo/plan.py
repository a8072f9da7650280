"""How many steps fit a budget: arithmetic on what a calibration measured, and the plan that a run keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from prologue.config import Variant
from prologue.errors import ConfigError, RunError
from prologue.studies.demo import recipe

MARGIN = 0.07
"""Part of the budget that is planned for nothing."""
APART_SHARE = 0.25
"""What is not training may take this part of the budget, or fewer images are drawn and measured."""
LEAST_STEPS = 10
RESAMPLED_ROWS = 8
"""Images whose prologue is kept, one of each class."""
FIGURES = 6
_KMEANS_BATCHES = 64
_CLASSES = 8
_WRITING_SECONDS = 6.0
"""For the start and the end of the process, grids, PNG files and the page."""


@dataclass(frozen=True)
class Sizes:
    """How many images are drawn and measured."""

    samples: int
    """Samples that each way of sampling is measured on."""
    choice_samples: int
    """Samples of each candidate recipe."""
    measured_images: int
    """Validation images that reconstructions and likelihood are measured on."""
    shown_rows: int
    """Rows of the class-by-class pictures, an image of each class in a row."""
    resamples: int
    """Images drawn from each kept prologue."""


_LADDER = (
    Sizes(512, 128, 1024, 6, 6),
    Sizes(512, 64, 1024, 6, 6),
    Sizes(512, 32, 512, 6, 6),
    Sizes(256, 16, 256, 4, 6),
    Sizes(128, 8, 128, 3, 4),
    Sizes(64, 8, 64, 2, 3),
)
"""The widest first."""


@dataclass(frozen=True)
class Timings:
    """Seconds on this machine, each a median after warming up."""

    tokenizer_step: float
    prior_step: float
    token_view: float
    """To encode one image."""
    sampled_row: float
    """To sample one row of tokens, decode and measure it; a guided image has two rows."""
    reconstructed_image: float
    """To measure one reconstruction."""
    rendered_image: float
    checkpoint: float
    figure: float


@dataclass(frozen=True)
class Plan:
    """What a demo does, decided once and stored in its `run.json` before the first step."""

    minutes: float
    compare: bool
    tokenizer_steps: int
    prior_steps: int
    sizes: Sizes
    timings: dict[str, dict[str, float]]
    """What the calibration measured, by variant, in seconds."""
    seconds: dict[str, float]
    """What each part is expected to take."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The plan that a run stored; one of another version is a `RunError`."""
        try:
            return cls(**{**data, "sizes": Sizes(**data["sizes"])})
        except (TypeError, KeyError) as error:
            raise RunError(
                f"the stored plan does not fit this version ({error}): delete the folder, or choose another --out"
            ) from error


def make_plan(timings: Mapping[Variant, Timings], minutes: float, elapsed: float) -> Plan:
    """Divide what is left of `minutes` after `elapsed` seconds; with timings of two variants, between both.

    Both variants get the same steps. A budget in which not even a few steps fit is a `ConfigError` that says what
    would be enough.
    """
    usable = 60 * minutes * (1 - MARGIN)
    for sizes in _LADDER:
        apart = _apart(timings, minutes, sizes)
        if sum(apart.values()) <= APART_SHARE * usable:
            break
    left = usable - elapsed - sum(apart.values())
    # Checkpoints cost a part of the time that they protect.
    saving = 1 + max(each.checkpoint for each in timings.values()) / recipe.CHECKPOINT_SECONDS
    tokenizer = saving * sum(each.tokenizer_step for each in timings.values())
    prior = saving * sum(each.prior_step for each in timings.values())
    tokenizer_steps = int(left * recipe.TOKENIZER_SHARE / tokenizer)
    prior_steps = int(left * (1 - recipe.TOKENIZER_SHARE) / prior)
    if min(tokenizer_steps, prior_steps) < LEAST_STEPS:
        least = max(tokenizer / recipe.TOKENIZER_SHARE, prior / (1 - recipe.TOKENIZER_SHARE)) * LEAST_STEPS
        enough = (elapsed + sum(apart.values()) + least) / (1 - MARGIN) / 60
        raise ConfigError(
            f"{minutes:g} minutes are too few to train anything on this machine: give at least --minutes {enough:.1f}"
        )
    return Plan(
        minutes=minutes,
        compare=len(timings) > 1,
        tokenizer_steps=tokenizer_steps,
        prior_steps=prior_steps,
        sizes=sizes,
        timings={
            name: {part: float(f"{value:.4g}") for part, value in vars(each).items()} for name, each in timings.items()
        },
        seconds={
            name: round(value, 2)
            for name, value in (
                {"calibration": elapsed, "tokenizer": tokenizer_steps * tokenizer, "prior": prior_steps * prior} | apart
            ).items()
        },
    )


def _apart(timings: Mapping[Variant, Timings], minutes: float, sizes: Sizes) -> dict[str, float]:
    """Seconds of everything that is not a training step."""
    images = recipe.training_images(minutes)
    unguided, guided = len(recipe.UNGUIDED), len(recipe.GUIDED)
    # A guided image takes two rows: with the class, and without.
    measured_rows = 3 * sizes.samples
    shown_rows = 3 * _CLASSES * sizes.shown_rows + 2 * RESAMPLED_ROWS * sizes.resamples
    total = dict.fromkeys(("rendering", "start and snapshots", "tokens", "choice", "evaluation", "report"), 0.0)
    for name, each in timings.items():
        kmeans = len(recipe.KMEANS_AT) * _KMEANS_BATCHES * recipe.TOKENIZER_BATCH * each.token_view
        snapshots = recipe.SNAPSHOTS * (16 * each.sampled_row + 16 * each.token_view + 0.05)
        forward = each.prior_step / recipe.PRIOR_BATCH / 3
        total["rendering"] += (images + recipe.VALIDATION_IMAGES + 2 * sizes.samples) * each.rendered_image
        total["start and snapshots"] += snapshots + (kmeans if name == "prologue" else 0.0)
        total["tokens"] += images * each.token_view
        total["choice"] += (unguided + 2 * guided) * sizes.choice_samples * each.sampled_row
        total["evaluation"] += measured_rows * each.sampled_row
        total["evaluation"] += sizes.measured_images * (each.reconstructed_image + 3 * each.token_view + 2 * forward)
        total["report"] += FIGURES * each.figure + shown_rows * each.sampled_row + _WRITING_SECONDS
    return total
