"""Classifier-free guidance: how strongly each step leans on its class (METHOD §9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from prologue.errors import SamplingError
from prologue.models.sequence import SequenceLayout

ScheduleKind = Literal["constant", "linear", "cosine"]
_KINDS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A guidance scale over `u` in [0, 1): from `start` to `scale`, bent by `power` (cosine only)."""

    kind: ScheduleKind
    scale: float
    power: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise SamplingError(f"unknown guidance schedule {self.kind!r}: choose one of {', '.join(_KINDS)}")
        for name in ("scale", "power", "start"):
            value: Any = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise SamplingError(f"guidance {name} must be a finite number, not {value!r}")
        if self.power <= 0:
            raise SamplingError(f"guidance power must be positive, not {self.power}")

    def at(self, u: float) -> float:
        """The scale at `u`; `constant` ignores `start`."""
        if self.kind == "constant":
            return self.scale
        if self.kind == "linear":
            return self.start * (1 - u) + self.scale * u
        return self.start + (self.scale - self.start) * (1 - math.cos(math.pi * u**self.power)) / 2


SegmentSchedule = tuple[ScheduleKind, float] | tuple[ScheduleKind, float, float]
"""(kind, scale) or (kind, scale, power)."""


@dataclass(frozen=True)
class Guidance:
    """`c·cond + (1−c)·null` with a scale `c` per step; made by `none`, `overall` or `split`."""

    whole: Schedule | None = None
    prologue: Schedule | None = None
    visual: Schedule | None = None

    @classmethod
    def none(cls) -> Guidance:
        """The class alone: a scale of 1 everywhere, and no null rows to compute."""
        return cls()

    @classmethod
    def overall(cls, kind: ScheduleKind, scale: float, power: float = 1.0) -> Guidance:
        """One schedule over the whole sequence, `u = t/T`, starting at 1 (METHOD §9)."""
        return cls(whole=Schedule(kind, scale, power))

    @classmethod
    def split(
        cls,
        prologue: SegmentSchedule,
        visual: SegmentSchedule,
        prologue_start: float = 0.0,
        visual_start: float = 1.0,
    ) -> Guidance:
        """A schedule for each segment: `u = t/P` in the prologue, `u = (t−P)/(T−P)` behind it, EOS included."""
        return cls(prologue=_schedule(prologue, prologue_start), visual=_schedule(visual, visual_start))

    def scales(self, layout: SequenceLayout) -> list[float]:
        """The scale `c` at each of the layout's T target steps."""
        prologue, length = layout.prologue_tokens, layout.length
        if self.whole is not None:
            return [self.whole.at(step / length) for step in range(length)]
        if self.prologue is None or self.visual is None:
            return [1.0] * length
        first = [self.prologue.at(step / prologue) for step in range(prologue)]
        return first + [self.visual.at((step - prologue) / (length - prologue)) for step in range(prologue, length)]

    @property
    def active(self) -> bool:
        """False for `Guidance.none()`."""
        return self != Guidance()


def _schedule(parts: SegmentSchedule | Sequence[object], start: float) -> Schedule:
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not 2 <= len(parts) <= 3:
        raise SamplingError(f"a segment's guidance is (kind, scale) or (kind, scale, power), not {parts!r}")
    kind, scale, power = (*parts, 1.0)[:3]
    scale, power = (float(value) if isinstance(value, Real) else value for value in (scale, power))
    return Schedule(kind, scale, power, start)  # type: ignore[arg-type]
