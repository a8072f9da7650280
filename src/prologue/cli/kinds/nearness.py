"""What distances to the nearest training images say, in words."""

from __future__ import annotations

from collections.abc import Iterator

from prologue.evaluation.memorisation import CHANCE
from prologue.evaluation.runs import Record


def warns(record: Record, name: str) -> bool:
    """Whether more samples than chance allows are nearer to a training image than held-out images are."""
    more = record[f"{name}_share_low"] > record[f"{name}_share_expected"]
    return bool(more and record[f"{name}_share_chance"] < CHANCE)


def verdict(record: Record, name: str, label: str) -> Iterator[str]:
    """Sentences on the figures `name_…` of a record, called `label`."""
    share, expected = record[f"{name}_share"], record[f"{name}_share_expected"]
    if warns(record, name):
        yield (
            f"Warning, {label}: {share:.1%} of the samples ({record[f'{name}_share_low']:.1%} … "
            f"{record[f'{name}_share_high']:.1%}) are nearer to a training image than all but 1 % of the held-out "
            f"images, where {expected:.1%} would be if they were alike: look at the closest pairs."
        )
    else:
        yield f"{label}: no more samples are very near a training image than held-out images are, at this N."
    if record[f"{name}_copies_share_high"] < 0.5:
        yield (
            f"{label}: only {record[f'{name}_copies_share']:.1%} of the copies are that near, so many copies would go "
            "unseen by this share."
        )
    nearer, low, high = (record[f"{name}_nearer{end}"] for end in ("", "_low", "_high"))
    if low > 0.5:
        yield (
            f"Warning, {label}: samples are nearer to the training images than held-out images are ({nearer:.0%} of "
            f"the pairs, {low:.0%} … {high:.0%}). Copies do this; so do smooth or typical images, which lie near many."
        )
    elif high < 0.5:
        yield f"{label}: samples are farther from the training images than held-out images are."
    else:
        yield f"{label}: on the whole not distinguishable from held-out images at this N."
