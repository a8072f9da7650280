"""Means and rates with their intervals."""

from __future__ import annotations

import pytest
import torch

from prologue.evaluation.metrics.intervals import Interval, mean_interval, wilson_interval


def test_intervals() -> None:
    # Wilson's interval of 8 in 10 and 0 in 10, as tables print them.
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert mean_interval(torch.tensor([1.0, 3.0])) == pytest.approx((2.0, 2 - 1.959964, 2 + 1.959964))
    assert Interval(1.0, None, 2.0).fields("x", 10) == {"x": 10.0, "x_low": None, "x_high": 20.0}
