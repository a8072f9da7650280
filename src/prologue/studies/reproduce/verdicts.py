"""What figures of a few seeds allow to say: t intervals, verdicts against a threshold, prediction of one more seed.

Nothing here knows what the figures are of. A claim is that a mean is at least, or at most, a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Outcome = Literal["confirmed", "refuted", "undecided"]
LEVEL = 0.95
MOST_SEEDS = 1000
"""Beyond so many seeds a claim counts as one that more seeds would not decide."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval; without ends for one seed."""

    n: int
    mean: float
    deviation: float | None
    """Between seeds (n − 1 in the denominator)."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """A claim that a mean is at least (or `at_most`) `threshold`, and what the seeds say of it."""

    outcome: Outcome
    threshold: float
    at_most: bool
    estimate: Estimate
    needed: int | None
    """Seeds that would decide an undecided claim if mean and spread stayed as they are; None where it is decided, where
    one seed tells no spread, and beyond `MOST_SEEDS`."""


def inside_t(t: float, freedom: int) -> float:
    """Probability that Student's t with `freedom` degrees lies in [−t, t], by its finite series."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


@lru_cache(maxsize=4096)
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t that `inside_t` gives `level` for; at least one degree of freedom."""
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"no t quantile of {freedom} degrees of freedom at level {level}")
    low, high = 0.0, 1.0
    while inside_t(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if inside_t(middle, freedom) < level else (low, middle)
    return high


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its t interval; at least one value."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Estimate(n, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    reach = t_quantile(n - 1) * deviation / math.sqrt(n)
    return Estimate(n, mean, deviation, mean - reach, mean + reach)


def prediction(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval in which one further seed's value lies; None for fewer than two."""
    found = estimate(values)
    if found.deviation is None:
        return None
    reach = t_quantile(found.n - 1) * found.deviation * math.sqrt(1 + 1 / found.n)
    return found.mean - reach, found.mean + reach


def judge(values: Sequence[float], threshold: float, *, at_most: bool = False) -> Verdict:
    """*Confirmed* where the interval lies beyond the threshold, *refuted* where wholly on the other side.

    One seed has no interval, so it decides nothing.
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
    """The least number of seeds at which the interval would leave the threshold out, mean and spread unchanged."""
    if found.deviation is None:
        return None
    distance = abs(found.mean - threshold)
    for n in range(found.n + 1, MOST_SEEDS + 1):
        if t_quantile(n - 1) * found.deviation / math.sqrt(n) < distance:
            return n
    return None


def both(outcomes: Sequence[Outcome]) -> Outcome:
    """The verdict on a claim of several parts that must all hold; each at its own level."""
    if "refuted" in outcomes:
        return "refuted"
    return "confirmed" if outcomes and all(each == "confirmed" for each in outcomes) else "undecided"


def log_ratio(numerator: float, denominator: float) -> float | None:
    """Natural logarithm of a ratio; None where one of them is not positive."""
    return math.log(numerator / denominator) if numerator > 0 and denominator > 0 else None
