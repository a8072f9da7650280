"""Means and rates with their 95 % intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

NORMAL_95 = 1.959964
"""97.5 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """A value with its 95 % interval; the ends are None if a single image gives no interval."""

    value: float
    low: float | None
    high: float | None

    def fields(self, name: str, factor: float = 1.0) -> dict[str, Any]:
        """`{name, name_low, name_high}`, each multiplied by `factor`."""
        ends = [None if end is None else end * factor for end in (self.low, self.high)]
        return {name: self.value * factor, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def missing_fields(*names: str) -> dict[str, Any]:
    """`Interval.fields` of figures that were not measured: None for each value and each end."""
    return {f"{name}{end}": None for name in names for end in ("", "_low", "_high")}


def mean_interval(values: Float[Tensor, " n"]) -> Interval:
    """The mean over images with its normal 95 % interval, in float64."""
    wide = values.double()
    mean = float(wide.mean())
    if len(wide) < 2:
        return Interval(mean, None, None)
    reach = NORMAL_95 * float(wide.std()) / len(wide) ** 0.5
    return Interval(mean, mean - reach, mean + reach)


def wilson_interval(hits: int, trials: int) -> Interval:
    """A rate with its 95 % Wilson interval, which lies in [0, 1] and is valid for rates of 0 and 1."""
    rate, z2 = hits / trials, NORMAL_95**2
    middle = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    reach = NORMAL_95 / (1 + z2 / trials) * (rate * (1 - rate) / trials + z2 / (4 * trials**2)) ** 0.5
    return Interval(rate, max(0.0, middle - reach), min(1.0, middle + reach))
