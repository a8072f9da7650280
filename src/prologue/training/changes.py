"""Settings that may change in a started run: `--extend`, and remedies for gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prologue.errors import RunError

Difference = tuple[str, Any, Any]
"""Dotted name of a setting, its value in the run, its value now."""

FREE_FIELDS = (
    *("checkpoint_every", "keep_checkpoints", "log_every", "sample_every", "stop_after_skipped"),
    *("data.cache_mb", "data.max_pixels", "data"),
)
"""Fields without an effect on results, which may differ between the commands that continue a run.

`data` is the path of the images, which may change. The fingerprint shows whether the images are the same.
"""
STEPS = {"tokenizer": "tokenizer_training.steps", "prior": "prior_training.steps"}
"""The field with the number of steps of each trained stage."""
_SCHEDULE = ("lr", "final_lr", "warmup", "hold")
_REMEDIES = (*_SCHEDULE, "clip")


def grown(changed: Sequence[Difference]) -> dict[str, tuple[int, int]]:
    """The stages that get more steps, each with the steps before and now."""
    return {
        stage: (there, now)
        for stage, field in STEPS.items()
        for name, there, now in changed
        if name == field and now > there
    }


def check(
    path: object,
    stages: dict[str, Any],
    changed: Sequence[Difference],
    extend: bool,
    told: Callable[[Difference], str],
) -> None:
    """Raise a `RunError` for changes that a started run does not allow. `told` describes one difference."""
    if not (refused := [item for item in changed if not _allowed(item, stages, changed, extend)]):
        return
    listed = "\n  ".join(told(item) for item in refused)
    longer = all(_allowed(item, stages, changed, True) for item in refused)
    way = "Add --extend to train it for longer, repeat" if longer else "Repeat"
    raise RunError(
        f"{path} was started with other settings:\n  {listed}\n"
        f"{way} the settings of the run to continue it, or choose another --out"
    )


def _allowed(item: Difference, stages: dict[str, Any], changed: Sequence[Difference], extend: bool) -> bool:
    name = item[0]
    section, _, field = name.rpartition(".")
    stage = section.partition(".")[0].removesuffix("_training")
    if stage not in STEPS:
        return name == "precision" and any(known.get("failed") for known in stages.values())
    if stages.get(stage, {}).get("failed") and field in _REMEDIES:
        return True
    longer = extend and stage in grown(changed)
    return longer and (name == STEPS[stage] or (section != f"{stage}_training" and field in _SCHEDULE))
