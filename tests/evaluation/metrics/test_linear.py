"""The logistic regression against conditions that its optimum must meet."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.linear import STRENGTHS, Standardiser, fit_linear
from prologue.utils.rng import torch_stream


def planted(count: int, signal: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_stream(seed, "planted")
    x = torch.randn(count, 6, generator=generator)
    weight = torch.randn(6, 3, generator=generator)
    return x, (signal * x @ weight + torch.randn(count, 3, generator=generator)).argmax(1)


def test_one_binary_input_has_a_closed_form() -> None:
    # 3 of 4 are class 1 where x is 1, 1 of 4 where it is −1: the scores differ by ±log 3.
    x = torch.tensor([[1.0]] * 4 + [[-1.0]] * 4)
    y = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1])
    scores = fit_linear(x, y, 2, strengths=(1e-9,))(torch.tensor([[1.0], [-1.0]]))
    assert (scores[:, 1] - scores[:, 0]).tolist() == pytest.approx([math.log(3), -math.log(3)], rel=1e-3)


def test_the_gradient_is_zero_at_the_end() -> None:
    x, y = planted(300, 1.0)
    fitted = fit_linear(x, y, 3, strengths=(0.01,))
    inside = Standardiser.of(x)(x)
    miss = (fitted(x).softmax(1) - F.one_hot(y, 3)) / len(y)
    assert float((inside.T @ miss + 0.01 * fitted.weight).abs().max()) < 2e-5
    assert float(miss.sum(0).abs().max()) < 2e-5


def test_scale_and_place_of_inputs_do_not_matter() -> None:
    x, y = planted(200, 2.0)
    scaled = torch.cat([1000 * x - 7, torch.full((200, 1), 3.3)], dim=1)
    plain, other = fit_linear(x, y, 3), fit_linear(scaled, y, 3)
    assert plain.l2 == other.l2
    assert torch.allclose(plain(x), other(scaled), atol=1e-2)
    assert float(other.weight[-1].abs().max()) < 1e-9


def test_noise_is_held_down_and_signal_is_not() -> None:
    x, y = planted(400, 0.0)
    assert fit_linear(x, y, 3).l2 == max(STRENGTHS)
    x, y = planted(400, 30.0)
    assert fit_linear(x, y, 3).l2 == min(STRENGTHS)


def test_bad_input_is_named() -> None:
    x, y = planted(20, 1.0)
    with pytest.raises(EvaluationError, match="at least 5 rows"):
        fit_linear(x[:4], y[:4], 3)
    with pytest.raises(EvaluationError, match="finite"):
        fit_linear(x.masked_fill(x > 1, torch.nan), y, 3)
    with pytest.raises(EvaluationError, match=r"0…1"):
        fit_linear(x, y.clamp_min(2), 2)
