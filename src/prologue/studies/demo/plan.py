"""The number of steps that fits a time budget, from measured durations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from prologue.config import Variant
from prologue.errors import ConfigError, RunError
from prologue.studies.demo import recipe

MARGIN = 0.07
"""Part of the budget that is not planned."""
APART_SHARE = 0.25
"""Largest part of the budget for everything but training. Otherwise fewer images are measured."""
LEAST_STEPS = 10
RESAMPLED = 4
"""Images per prologue in the measurement of layout."""
PROLOGUES = 16
"""Prologues in the measurement of layout. More than eight include two of the same class."""
_LADDER = ((512, 1024), (512, 512), (256, 256), (128, 128), (64, 64))
"""Numbers of samples and of held-out images."""
_KMEANS_BATCHES = 64
_BATCH, _PRIOR_BATCH = 8, 32
_WRITING_SECONDS = 12.0
"""Seconds for the start and the end of the process, for pictures, files and the page."""


@dataclass(frozen=True)
class Timings:
    """Seconds of the parts of a demo on this machine."""

    tokenizer_step: float
    prior_step: float
    token_view: float
    """To encode one image."""
    sampled_row: float
    """To sample one row of tokens, decode and measure it. A guided image has two rows."""
    reconstructed_image: float
    """To measure one reconstruction."""
    rendered_image: float
    checkpoint: float


@dataclass(frozen=True)
class Plan:
    """The work of a demo. It is stored in `run.json` before the first step."""

    minutes: float
    compare: bool
    tokenizer_steps: int
    prior_steps: int
    samples: int
    """Samples of each evaluation of generation."""
    measured_images: int
    """Held-out images of the other evaluations."""
    seconds: dict[str, float]
    """Expected durations of the parts."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The stored plan of a run. Earlier versions stored `sizes` and `timings`. Other fields are a `RunError`."""
        try:
            data = dict(data)
            sizes = data.pop("sizes", None)
            if sizes is not None:
                data |= {name: sizes[name] for name in ("samples", "measured_images")}
            data.pop("timings", None)
            return cls(**data)
        except (TypeError, KeyError) as error:
            raise RunError(
                f"the stored plan does not fit this version ({error}): delete the folder, or choose another --out"
            ) from error


def make_plan(timings: Mapping[Variant, Timings], minutes: float, elapsed: float) -> Plan:
    """A plan for `minutes`, of which `elapsed` seconds have passed. All variants get the same steps.

    Raises `ConfigError` with a sufficient number of minutes if hardly any step fits.
    """
    usable = 60 * minutes * (1 - MARGIN)
    for samples, images in _LADDER:
        apart = _apart(timings, minutes, samples, images)
        if sum(apart.values()) <= APART_SHARE * usable:
            break
    left = usable - elapsed - sum(apart.values())
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
    seconds = {"calibration": elapsed, "tokenizer": tokenizer_steps * tokenizer, "prior": prior_steps * prior} | apart
    return Plan(
        minutes=minutes,
        compare=len(timings) > 1,
        tokenizer_steps=tokenizer_steps,
        prior_steps=prior_steps,
        samples=samples,
        measured_images=images,
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )


def _apart(timings: Mapping[Variant, Timings], minutes: float, samples: int, images: int) -> dict[str, float]:
    """Expected seconds of everything but the training steps."""
    trained = recipe.training_images(minutes)
    total = dict.fromkeys(("rendering", "start and snapshots", "tokens", "evaluation", "report"), 0.0)
    for name, each in timings.items():
        kmeans = len(recipe.KMEANS_AT) * _KMEANS_BATCHES * _BATCH * each.token_view
        snapshots = recipe.SNAPSHOTS * (16 * each.sampled_row + 16 * each.token_view + 0.05)
        forward = each.prior_step / _PRIOR_BATCH / 3
        # Samples with guidance have two rows, those without one. Each set of samples is compared with all images.
        rows = 3 * samples + (2 * PROLOGUES * (2 * RESAMPLED + 1) if name == "prologue" else 0)
        total["rendering"] += (3 * trained + 4 * recipe.VALIDATION_IMAGES + 2 * samples) * each.rendered_image
        total["start and snapshots"] += snapshots + (kmeans if name == "prologue" else 0.0)
        total["tokens"] += trained * each.token_view
        total["evaluation"] += rows * each.sampled_row + 2 * images * (each.reconstructed_image + 2 * forward)
        total["evaluation"] += 4 * (images + 2 * samples) * each.token_view
        total["report"] += _WRITING_SECONDS
    return total
