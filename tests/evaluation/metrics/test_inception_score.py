"""Inception Score: known answers, torchmetrics, its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.inception_score import inception_score
from prologue.utils.rng import torch_stream


def draw(n: int, classes: int = 10, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(n, classes, generator=torch_stream(seed, "logits"))


def test_is_the_number_of_classes_that_are_seen_surely_and_equally() -> None:
    assert inception_score(1e4 * torch.eye(5).repeat(4, 1)).value == pytest.approx(5)
    assert inception_score(1e4 * torch.eye(5)[[0, 1, 1, 0]]).value == pytest.approx(2)  # three classes are never seen
    alike = inception_score(torch.ones(6, 4))
    assert (alike.value, alike.low, alike.high) == pytest.approx((1, 1, 1))


def test_equals_torchmetrics_and_the_definition() -> None:
    from torchmetrics.image.inception import InceptionScore

    class Given(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    logits = draw(60).double()
    metric = InceptionScore(feature=Given(), splits=1)
    metric.update(logits.view(60, 10, 1, 1))
    assert inception_score(logits).value == pytest.approx(float(metric.compute()[0]), rel=1e-6)
    p = logits.softmax(1).numpy()
    expected = np.exp(np.mean([np.sum(row * np.log(row / p.mean(0))) for row in p]))
    assert inception_score(logits).value == pytest.approx(expected, rel=1e-12)


def test_is_the_mean_over_whole_splits() -> None:
    logits = draw(50)
    parts = [inception_score(part).value for part in (logits[:25], logits[25:])]
    assert inception_score(logits, split_size=20).value == pytest.approx(sum(parts) / 2)
    assert inception_score(logits, split_size=40).value == pytest.approx(inception_score(logits).value)


def test_interval_covers_the_score_of_endless_samples() -> None:
    """Of many enough samples, whose bias is small against the interval."""
    truth = inception_score(draw(400_000, 3, seed=9), split_size=400_000).value
    scores = [inception_score(draw(2000, 3, seed=100 + i), split_size=1000) for i in range(200)]
    assert 0.89 <= np.mean([score.low <= truth <= score.high for score in scores]) <= 0.99


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(EvaluationError, match="at least 2 samples"):
        inception_score(draw(1))
    with pytest.raises(EvaluationError, match="NaN"):
        inception_score(torch.full((3, 2), torch.nan))
