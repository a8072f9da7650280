"""Statistics of a few seeds against hand computation."""

from __future__ import annotations

import math

import pytest

from prologue.studies.reproduce.verdicts import (
    both,
    estimate,
    judge,
    log_ratio,
    seeds_to_decide,
)


def test_an_interval_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])
    # deviation 1, t(2) = 4.30265, reach 4.30265 / sqrt(3)
    assert (found.n, found.mean, found.deviation) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 2.48414, abs=1e-4)
    assert found.high == pytest.approx(2 + 2.48414, abs=1e-4)


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
