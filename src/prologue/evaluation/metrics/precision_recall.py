"""Precision and recall of samples by their nearest neighbours in features (Kynkäänniemi et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import Interval, wilson_interval

NEIGHBOURS = 3
_ROWS, _COLUMNS = 1024, 4096
_SLACK = 1e-12
"""Of the largest squared norm: distances closer than this are equal but for rounding."""

Features = Float[Tensor, "_ d"]
Squares = Float64[Tensor, " n"]


class PrecisionRecall(NamedTuple):
    """Parts of the samples near reference images, and of the reference images near samples.

    The 95 % intervals are Wilson's over the images that are judged, with the other side as it is.
    """

    precision: Interval
    recall: Interval


def precision_recall(samples: Features, reference: Features, k: int = NEIGHBOURS) -> PrecisionRecall:
    """An image is near a set when it lies in the ball of any image of it, which reaches to that one's `k`-th neighbour.

    Exact in float64 on the CPU, a block of distances at a time. Other widths, NaN, or not more than `k` images on a
    side are an `EvaluationError`.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise EvaluationError(
            f"precision needs the same features on both sides, not {tuple(samples.shape)} and {tuple(reference.shape)}"
        )
    fewest = min(len(samples), len(reference))
    if fewest <= k:
        raise EvaluationError(f"precision and recall with k = {k} need at least {k + 1} images a side, not {fewest}")
    if not all(bool(part.isfinite().all()) for side in (samples, reference) for part in torch.split(side, _COLUMNS)):
        raise EvaluationError("the features hold NaN or infinity: the images or the model's weights are broken")
    centre = reference.mean(0, dtype=torch.float64)  # distances of far-away features would lose their digits
    norms = [float(_squares(side, centre).max()) for side in (samples, reference)]
    slack = _SLACK * max(norms)
    real, drawn = _radii(reference, centre, k), _radii(samples, centre, k)
    near_real = torch.zeros(len(samples), dtype=torch.bool)
    near_drawn = torch.zeros(len(reference), dtype=torch.bool)
    for rows, columns, squared in _blocks(samples, reference, centre):
        near_real[rows] |= (squared <= real[columns] + slack).any(1)
        near_drawn[columns] |= (squared <= drawn[rows, None] + slack).any(0)
    return PrecisionRecall(_rate(near_real), _rate(near_drawn))


def _rate(near: Bool[Tensor, " n"]) -> Interval:
    return wilson_interval(int(near.sum()), len(near))


def _squares(side: Features, centre: Float64[Tensor, " d"]) -> Squares:
    return torch.cat([(part.double() - centre).square().sum(1) for part in torch.split(side, _COLUMNS)])


def _radii(side: Features, centre: Float64[Tensor, " d"], k: int) -> Squares:
    """Squared distance of each image to its `k`-th neighbour in its own set."""
    nearest = torch.full((len(side), k), torch.inf, dtype=torch.float64)
    for rows, columns, squared in _blocks(side, side, centre):
        own = torch.arange(rows.start, rows.stop)[:, None] == torch.arange(columns.start, columns.stop)
        known = torch.cat([nearest[rows], squared.masked_fill(own, torch.inf)], 1)
        nearest[rows] = known.topk(k, largest=False).values
    return nearest[:, -1]


def _blocks(
    first: Features, second: Features, centre: Float64[Tensor, " d"]
) -> Iterator[tuple[slice, slice, Float64[Tensor, "rows columns"]]]:
    """Squared distances of all pairs, a block at a time, with the rows and columns that it is of."""
    for top in range(0, len(first), _ROWS):
        x = first[top : top + _ROWS].double() - centre
        for left in range(0, len(second), _COLUMNS):
            y = second[left : left + _COLUMNS].double() - centre
            squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)
            yield slice(top, top + len(x)), slice(left, left + len(y)), squared.clamp_min_(0)
