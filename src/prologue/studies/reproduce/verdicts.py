"""Statistics over a few seeds: t intervals, and verdicts against a threshold.

A claim is that a mean is at least, or at most, a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["confirmed", "refuted", "undecided"]
LEVEL = 0.95
MOST_SEEDS = 1000
"""The largest number of seeds that `seeds_to_decide` tries."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval. One seed has no interval."""

    n: int
    mean: float
    deviation: float | None
    """Standard deviation between seeds, with n − 1 in the denominator."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """The outcome of the claim that a mean is at least (or `at_most`) `threshold`."""

    outcome: Outcome
    threshold: float
    at_most: bool
    estimate: Estimate
    needed: int | None
    """Seeds that would decide an undecided claim if mean and deviation stayed the same. None for a decided claim, for
    one seed, and above `MOST_SEEDS`."""


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over seeds with its t interval, of at least one value."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Estimate(n, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    reach = _reach(n, deviation)
    return Estimate(n, mean, deviation, mean - reach, mean + reach)


def _reach(n: int, deviation: float) -> float:
    """Half the width of the t interval of a mean of `n` values."""
    from scipy.stats import t  # slow to import

    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)


def judge(values: Sequence[float], threshold: float, *, at_most: bool = False) -> Verdict:
    """*Confirmed* if the interval is beyond the threshold, *refuted* if it is on the other side, else *undecided*.

    One seed has no interval and decides nothing.
    """
    found = estimate(values)
    outcome: Outcome = "undecided"
    if found.low is not None and found.high is not None:
        above, below = found.low >= threshold, found.high <= threshold
        if found.low == found.high == threshold:
            outcome = "confirmed"
        elif above or below:
            outcome = "confirmed" if below == at_most else "refuted"
    needed = seeds_to_decide(found, threshold) if outcome == "undecided" else None
    return Verdict(outcome, threshold, at_most, found, needed)


def seeds_to_decide(found: Estimate, threshold: float) -> int | None:
    """The least number of seeds whose interval excludes the threshold, for the same mean and deviation."""
    if found.deviation is None:
        return None
    distance = abs(found.mean - threshold)
    for n in range(found.n + 1, MOST_SEEDS + 1):
        if _reach(n, found.deviation) < distance:
            return n
    return None


def both(outcomes: Sequence[Outcome]) -> Outcome:
    """The verdict on a claim whose parts must all hold. Each part is judged at its own level."""
    if "refuted" in outcomes:
        return "refuted"
    return "confirmed" if outcomes and all(each == "confirmed" for each in outcomes) else "undecided"


def log_ratio(numerator: float | None, denominator: float | None) -> float | None:
    """The natural logarithm of a ratio, or None unless both numbers are positive."""
    if numerator is None or denominator is None or min(numerator, denominator) <= 0:
        return None
    return math.log(numerator / denominator)
