"""The known factors of embedded images as quantities with few values, for probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from prologue.data.embedded.plates import PlatesSet
from prologue.data.embedded.shapes import ShapesSet
from prologue.data.source import ImageSet
from prologue.evaluation.classifier import KINDS

_SCENES_IN_THIRDS = ("light", "x", "y", "size")
"""Measured factors, cut at the terciles of the train images."""
_PLATES_IN_THIRDS = ("x", "y")
"""Measured factors, cut into three equal parts of -1 … 1, since figures have only a few places."""


@dataclass(frozen=True)
class Factor:
    """A quantity with few values, for the train and the test images."""

    name: str
    values: int
    train: Int64[Tensor, " n"]
    test: Int64[Tensor, " m"]


def known_factors(
    train: ImageSet, train_indices: Int64[np.ndarray, " n"], test: ImageSet, test_indices: Int64[np.ndarray, " m"]
) -> list[Factor]:
    """The factors of embedded images; none for other images.

    `shapes` have kind, colour, texture, background and night, then light, x, y and size in thirds; `plates` have the
    figure, its hue and that of the ground, then x and y in thirds.
    """
    thirds: tuple[str, ...]
    if isinstance(train, ShapesSet) and isinstance(test, ShapesSet):
        named, thirds = KINDS["shapes"].factors, _SCENES_IN_THIRDS
    elif isinstance(train, PlatesSet) and isinstance(test, PlatesSet):
        named, thirds = KINDS[f"plates-{train.options.figures}"].factors, _PLATES_IN_THIRDS
    else:
        return []
    ours = [train.factors(index) for index in train_indices.tolist()]
    theirs = [test.factors(index) for index in test_indices.tolist()]
    out = []
    for name, values in named:
        numbers = [[values.index(known[name]) for known in side] for side in (ours, theirs)]
        out.append(Factor(name, len(values), *map(torch.tensor, numbers)))
    for name in thirds:
        sides = [np.array([known[name] for known in side]) for side in (ours, theirs)]
        cuts = np.quantile(sides[0], [1 / 3, 2 / 3]) if thirds is _SCENES_IN_THIRDS else np.array([-1 / 3, 1 / 3])
        out.append(Factor(name, 3, *(torch.from_numpy(np.searchsorted(cuts, side)) for side in sides)))
    return out
