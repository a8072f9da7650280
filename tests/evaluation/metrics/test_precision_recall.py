"""Precision and recall against the double loop."""

from __future__ import annotations

import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.metrics import precision_recall as module
from prologue.evaluation.metrics.precision_recall import precision_recall
from prologue.utils.rng import torch_stream


def draw(n: int, seed: int, d: int = 4, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch_stream(seed, "features")) + shift


def brute_force(judged: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).square().sum()) ** 0.5

    radii = [sorted(distance(x, y) for j, y in enumerate(manifold) if j != i)[k - 1] for i, x in enumerate(manifold)]
    near = [any(distance(x, y) <= radius for y, radius in zip(manifold, radii, strict=True)) for x in judged]
    return sum(near) / len(near)


@pytest.mark.parametrize("k", [1, 3])
def test_equals_the_double_loop_in_blocks_of_any_size(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = draw(31, 0, shift=1.2), draw(23, 1)
    expected = (brute_force(samples, reference, k), brute_force(reference, samples, k))
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    for rows, columns in ((1024, 4096), (5, 7), (1, 2)):
        monkeypatch.setattr(module, "_ROWS", rows)
        monkeypatch.setattr(module, "_COLUMNS", columns)
        found = precision_recall(samples, reference, k)
        assert (found.precision.value, found.recall.value) == pytest.approx(expected)
    assert found.precision.low < found.precision.value < found.precision.high


def test_known_answers() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0], [101.0], [102.0], [103.0]])
    same = precision_recall(real, real)
    assert (same.precision.value, same.recall.value) == (1, 1)
    half = precision_recall(real[:4], real)  # every sample is real, and half of the reals have no sample near
    assert (half.precision.value, half.recall.value) == (1, 0.5)
    assert precision_recall(real, real[:4]) == (half.recall, half.precision)
    apart = precision_recall(real + 1000, real)
    assert (apart.precision.value, apart.recall.value) == (0, 0)


def test_far_from_zero_and_all_equal() -> None:
    samples, reference = draw(20, 0, shift=1).double(), draw(20, 1).double()
    near, far = precision_recall(samples, reference), precision_recall(samples + 1e5, reference + 1e5)
    assert near == far
    equal = precision_recall(torch.full((5, 3), 0.1), torch.full((6, 3), 0.1))
    assert (equal.precision.value, equal.recall.value) == (1, 1)


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(EvaluationError, match="at least 4 images a side, not 3"):
        precision_recall(draw(3, 0), draw(9, 1))
    with pytest.raises(EvaluationError, match="same features"):
        precision_recall(draw(5, 0), draw(5, 1, d=5))
    with pytest.raises(EvaluationError, match="NaN"):
        precision_recall(draw(5, 0), torch.full((5, 4), torch.nan))
