"""Kernel distance between two sets of features: unbiased squared MMD with a cubic kernel, and its interval.

The kernel is that of KID (Bińkowski et al., 2018): `k(x, y) = (x·y / d + 1)³`. Being unbiased, its expectation is the
same for any number of images, which a Fréchet distance's is not; so it leads where there are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import NORMAL_95
from prologue.utils.rng import numpy_stream

LEAST = 3
"""Images on each side below which leaving one out leaves no pair."""
_ROWS = 1024


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased estimate, which may be negative, with its standard error and 95 % interval."""

    value: float
    error: float
    low: float
    high: float


def kernel_distance(
    first: Float[Tensor, "m d"], second: Float[Tensor, "n d"], *, seed: int = 0, subset_size: int = 5000
) -> KernelDistance:
    """Unbiased squared MMD between the distributions behind two feature sets, in float64 on the CPU.

    Both sets are dealt at random (stream "kid" of `seed`) into as many disjoint subsets as keep at most `subset_size`
    images in each; the value is the mean of the subsets' unbiased estimates. Its error is the jackknife's over images,
    which tends to be too large rather than too small. Where all fits in one subset, no image pair is left out.
    At least three images on each side, else an `EvaluationError`.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise EvaluationError(
            f"a distance needs the same features on both sides, not {tuple(first.shape)} and {tuple(second.shape)}"
        )
    first, second = first.detach().cpu(), second.detach().cpu()
    fewest, most = sorted((len(first), len(second)))
    if fewest < LEAST:
        raise EvaluationError(f"a kernel distance needs at least {LEAST} images on each side, not {fewest}")
    subsets = min(-(-most // subset_size), fewest // LEAST)
    parts = zip(_deal(first, subsets, seed, "first"), _deal(second, subsets, seed, "second"), strict=True)
    estimates = [_estimate(first[a].double(), second[b].double()) for a, b in parts]
    value = sum(value for value, _ in estimates) / subsets
    error = sum(variance for _, variance in estimates) ** 0.5 / subsets
    return KernelDistance(value, error, value - NORMAL_95 * error, value + NORMAL_95 * error)


def _deal(features: Float[Tensor, "n d"], subsets: int, seed: int, side: str) -> tuple[Int64[Tensor, " _"], ...]:
    """The rows of each subset."""
    if not all(bool(part.isfinite().all()) for part in torch.split(features, _ROWS)):
        raise EvaluationError("the features hold NaN or infinity: the images or the model's weights are broken")
    order = torch.from_numpy(numpy_stream(seed, "kid", side).permutation(len(features)))
    return order.tensor_split(subsets)


def _row_sums(
    x: Float64[Tensor, "m d"], y: Float64[Tensor, "n d"]
) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " n"]]:
    """Sums of the kernel matrix over its rows and over its columns, a slab at a time."""
    by_x = x.new_empty(len(x))
    by_y = y.new_zeros(len(y))
    for start in range(0, len(x), _ROWS):
        kernel = (x[start : start + _ROWS] @ y.T / x.shape[1] + 1) ** 3
        by_x[start : start + _ROWS] = kernel.sum(1)
        by_y += kernel.sum(0)
    return by_x, by_y


def _estimate(x: Float64[Tensor, "m d"], y: Float64[Tensor, "n d"]) -> tuple[float, float]:
    """The unbiased estimate of one pair of subsets and its jackknife variance.

    Leaving one image out changes sums by that image's row of the kernel matrices, so all m + n values come for free.
    """
    m, n = len(x), len(y)
    own_x = _row_sums(x, x)[0] - (x.square().sum(1) / x.shape[1] + 1) ** 3
    own_y = _row_sums(y, y)[0] - (y.square().sum(1) / y.shape[1] + 1) ** 3
    cross_x, cross_y = _row_sums(x, y)
    within_x, within_y, cross = own_x.sum(), own_y.sum(), cross_x.sum()
    value = within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2 * cross / (m * n)
    without_x = (within_x - 2 * own_x) / ((m - 1) * (m - 2)) - 2 * (cross - cross_x) / ((m - 1) * n)
    without_y = (within_y - 2 * own_y) / ((n - 1) * (n - 2)) - 2 * (cross - cross_y) / (m * (n - 1))
    variance = sum((k - 1) / k * (w - w.mean()).square().sum() for k, w in ((m, without_x), (n, without_y)))
    return float(value), float(variance)
