"""The known factors of `shapes` as quantities with few values, for probes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64

from prologue.data.shapes import ShapesSet
from prologue.evaluation.classifier import FACTORS
from prologue.evaluation.probe import Factor

_IN_THIRDS = ("light", "x", "y", "size")
"""Measured factors, cut into three parts that are equally frequent among the train images."""


def scene_factors(
    train: ShapesSet, train_indices: Int64[np.ndarray, " n"], test: ShapesSet, test_indices: Int64[np.ndarray, " m"]
) -> list[Factor]:
    """Kind, colour, texture, background and night, then light, x, y and size in thirds."""
    ours = [train.scene(index) for index in train_indices.tolist()]
    theirs = [test.scene(index) for index in test_indices.tolist()]
    out = []
    for name, values in FACTORS:
        numbers = [[values.index(getattr(scene, name)) for scene in scenes] for scenes in (ours, theirs)]
        out.append(Factor(name, len(values), *map(torch.tensor, numbers)))
    for name in _IN_THIRDS:
        sides = [np.array([getattr(scene, name) for scene in scenes]) for scenes in (ours, theirs)]
        cuts = np.quantile(sides[0], [1 / 3, 2 / 3])
        out.append(Factor(name, 3, *(torch.from_numpy(np.searchsorted(cuts, side)) for side in sides)))
    return out
