"""Statistics of a few seeds against hand computation and scipy."""

from __future__ import annotations

import math

import pytest

from prologue.studies.reproduce.verdicts import (
    both,
    estimate,
    inside_t,
    judge,
    log_ratio,
    prediction,
    seeds_to_decide,
    t_quantile,
)


def test_quantiles_are_those_of_tables() -> None:
    known = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 30: 2.04227, 999: 1.96234}
    for freedom, value in known.items():
        assert t_quantile(freedom) == pytest.approx(value, rel=1e-5)
    assert t_quantile(2, 0.99) == pytest.approx(9.92484, rel=1e-5)
    assert inside_t(1.0, 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_quantile(0)


def test_quantiles_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 4, 5, 6, 7, 10, 11, 40, 101, 998):
        for level in (0.5, 0.9, 0.95, 0.999):
            assert t_quantile(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def test_an_interval_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])
    # deviation 1, t(2) = 4.30265, reach 4.30265 / sqrt(3)
    assert (found.n, found.mean, found.deviation) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 2.48414, abs=1e-4)
    assert found.high == pytest.approx(2 + 2.48414, abs=1e-4)


def test_one_further_seed_by_hand() -> None:
    assert prediction([1.0]) is None
    found = prediction([1.0, 2.0, 3.0])
    assert found == pytest.approx((2 - 4.96828, 2 + 4.96828), abs=1e-4)  # 4.30265 · sqrt(4/3)


def test_one_further_seed_falls_inside_as_often_as_said() -> None:
    from prologue.utils.rng import numpy_stream

    draws = numpy_stream(0, "tests", "prediction").normal(size=(4000, 4))
    hits = 0
    for row in draws:
        low, high = prediction(row[:3].tolist()) or (0.0, 0.0)
        hits += low <= row[3] <= high
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("threshold", "outcome"), [(-0.5, "confirmed"), (0.0, "undecided"), (4.0, "undecided"), (4.5, "refuted")]
)
def test_a_verdict_is_where_the_interval_lies(threshold: float, outcome: str) -> None:
    # interval -0.484 … 4.484
    verdict = judge([1.0, 2.0, 3.0], threshold)
    assert verdict.outcome == outcome
    assert (verdict.needed is None) == (outcome != "undecided")


def test_an_undecided_claim_says_how_many_seeds_would_decide_it() -> None:
    # mean 2, deviation 1, threshold 1: t(n−1)/√n < 1 first at n = 7 (t(6) = 2.4469, √7 = 2.6458; t(5)/√6 = 1.049)
    verdict = judge([1.0, 2.0, 3.0], 1.0)
    assert (verdict.outcome, verdict.needed) == ("undecided", 7)
    assert seeds_to_decide(estimate([1.0, 2.0, 3.0]), 2.0) is None


def test_one_seed_decides_nothing() -> None:
    verdict = judge([100.0], 1.0)
    assert (verdict.outcome, verdict.needed, verdict.estimate.low) == ("undecided", None, None)


def test_seeds_that_agree_exactly_decide() -> None:
    assert judge([2.0, 2.0, 2.0], 2.0).outcome == "confirmed"
    assert judge([2.0, 2.0, 2.0], 2.1).outcome == "refuted"


def test_a_claim_of_two_parts() -> None:
    assert both(["confirmed", "confirmed"]) == "confirmed"
    assert both(["confirmed", "undecided"]) == "undecided"
    assert both(["undecided", "refuted"]) == "refuted"
    assert both([]) == "undecided"


def test_log_ratios() -> None:
    assert log_ratio(3.0, 2.0) == pytest.approx(math.log(1.5))
    assert log_ratio(-0.1, 2.0) is None
    assert log_ratio(1.0, 0.0) is None
