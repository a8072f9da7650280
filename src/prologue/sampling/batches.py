"""Groups the images of a call into batches, and sets the number of rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from prologue.models.sequence import SequenceLayout
from prologue.sampling.known import Known
from prologue.sampling.recipe import Recipe


def same_passes(
    layout: SequenceLayout, recipes: Sequence[Recipe], known: Known | None, device: torch.device
) -> list[Int[Tensor, " n"]]:
    """The numbers of the images, grouped by guided and by completely known segments, which determine the passes."""
    guided = {guidance: guidance.guided_segments(layout) for guidance in {recipe.guidance for recipe in recipes}}
    whole: list[Any] = [None] * len(recipes)
    if known is not None:
        whole = torch.stack([known.prologue.all(1), known.visual.all(1)], dim=1).tolist()
    groups: dict[Any, list[int]] = {}
    for number, (recipe, segments) in enumerate(zip(recipes, whole, strict=True)):
        groups.setdefault((guided[recipe.guidance], str(segments)), []).append(number)
    return [torch.tensor(numbers, device=device) for numbers in groups.values()]


def filled_up(count: int, rows: int, device: torch.device) -> Int[Tensor, " rows"]:
    """The numbers below `count`; the last one is repeated up to `rows` entries."""
    return torch.arange(rows, device=device).clamp_max(count - 1)


def compiled_rows(count: int, most: int) -> int:
    """Rows of a compiled batch: the next power of two, at most `most`, so that few graphs are compiled."""
    return min(most, 1 << (count - 1).bit_length())
