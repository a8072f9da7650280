"""Fréchet distance between two sets of features, from moments in float64 (METHOD §10)."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from prologue.errors import EvaluationError

Matrix = Float64[Tensor, "d d"]
Vector = Float64[Tensor, " d"]


class Moments(NamedTuple):
    """Mean and covariance of features, float64 on the CPU."""

    mean: Vector
    covariance: Matrix


class GaussianStatistics:
    """Mean and covariance of features that arrive in batches, float64 on the CPU. `merge` adds statistics of parts."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    @property
    def dimension(self) -> int:
        return len(self._mean)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Add a batch. Another width, NaN or infinity is an `EvaluationError`."""
        batch = features.detach().to("cpu", torch.float64)
        if batch.ndim != 2 or batch.shape[1] != self.dimension:
            raise EvaluationError(f"features of shape (n, {self.dimension}) expected, not {tuple(batch.shape)}")
        if not bool(batch.isfinite().all()):
            raise EvaluationError("the features hold NaN or infinity: the images or the model's weights are broken")
        if len(batch):
            mean = batch.mean(0)
            centred = batch - mean
            self._combine(len(batch), mean, centred.T @ centred)

    def merge(self, other: GaussianStatistics) -> Self:
        """Add the samples of `other`; return self."""
        if other.dimension != self.dimension:
            raise EvaluationError(f"statistics of {self.dimension} and {other.dimension} features cannot be merged")
        if other.count:
            self._combine(other.count, other._mean, other._scatter)
        return self

    def state(self) -> Float64[Tensor, "d + 2 d"]:
        """Count, mean and scatter as rows of a table, for `from_state`."""
        count = torch.full((1, self.dimension), float(self.count), dtype=torch.float64)
        return torch.cat([count, self._mean[None], self._scatter])

    @classmethod
    def from_state(cls, state: Float64[Tensor, "d + 2 d"]) -> Self:
        """The statistics with this `state`."""
        statistics = cls(state.shape[1])
        statistics.count = int(state[0, 0])
        statistics._mean, statistics._scatter = state[1].clone(), state[2:].clone()
        return statistics

    @property
    def moments(self) -> Moments:
        """Mean and covariance; at least two samples."""
        return Moments(self.mean, self.covariance)

    def _combine(self, count: int, mean: Vector, scatter: Matrix) -> None:
        """Chan's update, with sums about the mean of each part against cancellation."""
        total = self.count + count
        shift = mean - self._mean
        self._scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    @property
    def mean(self) -> Vector:
        """The mean; at least one sample."""
        self._need(1)
        return self._mean

    @property
    def covariance(self) -> Matrix:
        """The unbiased covariance (divided by n - 1); at least two samples."""
        self._need(2)
        return self._scatter / (self.count - 1)

    def _need(self, least: int) -> None:
        if self.count < least:
            raise EvaluationError(f"a distance needs at least {least} images on each side, not {self.count}")


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """Fréchet distance of the Gaussians with these moments, at least two samples each; see `frechet_from_moments`."""
    return frechet_from_moments(first.mean, first.covariance, second.mean, second.covariance)


def frechet_from_moments(mean_a: Vector, covariance_a: Matrix, mean_b: Vector, covariance_b: Matrix) -> float:
    """`|mean_a - mean_b|² + tr(A) + tr(B) - 2 tr((AB)^½)`, which is never negative.

    With factors `A = FFᵀ` and `B = GGᵀ` the last trace is the sum of the singular values of `FᵀG`. Unlike the matrix
    root of `AB`, this has full precision for singular covariances, those of fewer samples than dimensions.
    """
    if mean_a.shape != mean_b.shape or covariance_a.shape != covariance_b.shape:
        raise EvaluationError(
            f"a distance needs the same features on both sides, not {len(mean_a)} and {len(mean_b)} of them"
        )
    factors = _factor(covariance_a).T @ _factor(covariance_b)
    overlap = torch.linalg.svdvals(factors).sum()
    shift = (mean_a.to("cpu", torch.float64) - mean_b.to("cpu", torch.float64)).square().sum()
    traces = covariance_a.to("cpu", torch.float64).trace() + covariance_b.to("cpu", torch.float64).trace()
    return max(0.0, float(shift + traces - 2 * overlap))


def _factor(covariance: Matrix) -> Float64[Tensor, "d rank"]:
    """`F` with `FFᵀ = covariance`, without directions whose variance is rounding noise."""
    matrix = covariance.to("cpu", torch.float64)
    # Scaled to about 1, because LAPACK may not converge for very small entries.
    scale = matrix.diagonal().max().clamp_min(torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(matrix / scale)
    values = values * scale
    keep = values > values[-1].clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
    factor: Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor
