"""Classifier-free guidance: the scale of each step, and the schedules it follows (METHOD §9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from prologue.errors import ConfigError, SamplingError
from prologue.models.sequence import SequenceLayout
from prologue.utils.registry import Registry


def constant(u: float, scale: float, start: float, power: float) -> float:
    """`scale` everywhere."""
    return scale


def linear(u: float, scale: float, start: float, power: float) -> float:
    """A straight line from `start` to `scale`."""
    return start * (1 - u) + scale * u


def cosine(u: float, scale: float, start: float, power: float) -> float:
    """Half a cosine wave of `u^power` from `start` to `scale`."""
    return start + (scale - start) * (1 - math.cos(math.pi * u**power)) / 2


SCHEDULES: Registry[Callable[[float, float, float, float], float]] = Registry(
    "guidance schedule", {"constant": constant, "linear": linear, "cosine": cosine}
)
"""Functions of `(u, scale, start, power)`, where `u` in [0, 1) is the position within the sequence or its segment."""


@dataclass(frozen=True)
class Schedule:
    """A guidance scale over `u` in [0, 1): `kind` names one of `SCHEDULES`, the numbers are its arguments."""

    kind: str
    scale: float
    power: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        try:
            SCHEDULES.get(str(self.kind))
        except ConfigError as error:
            raise SamplingError(str(error)) from error
        for name in ("scale", "power", "start"):
            _finite(f"guidance {name}", getattr(self, name))
        if self.power <= 0:
            raise SamplingError(f"guidance power must be positive, not {self.power}")

    def at(self, u: float) -> float:
        """The scale at `u`."""
        scale = SCHEDULES.get(self.kind)(u, self.scale, self.start, self.power)
        return _finite(f"the scale of guidance schedule {self.kind!r} at {u:.3f}", scale)


def _finite(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise SamplingError(f"{name} must be a finite number, not {value!r}")
    return float(value)


SegmentSchedule = tuple[str, float] | tuple[str, float, float]
"""(kind, scale) or (kind, scale, power)."""


@dataclass(frozen=True)
class Guidance:
    """Logits `c·cond + (1−c)·null` with a scale `c` per step; made by `none`, `overall` or `split`."""

    whole: Schedule | None = None
    prologue: Schedule | None = None
    visual: Schedule | None = None

    @classmethod
    def none(cls) -> Guidance:
        """The class's logits alone: the scale is 1 everywhere, and no null rows are computed."""
        return cls()

    @classmethod
    def overall(cls, kind: str, scale: float, power: float = 1.0) -> Guidance:
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
        """A schedule per segment: `u = t/P` in the prologue, `u = (t−P)/(T−P)` after it, EOS included."""
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

    def guided_segments(self, layout: SequenceLayout) -> tuple[str, ...]:
        """Names of the segments with a scale other than 1, whose steps need null rows; EOS is never drawn."""
        scales = self.scales(layout)
        return tuple(
            segment.name
            for segment in layout.segments
            if not segment.forced and any(scale != 1.0 for scale in scales[segment.start : segment.stop])
        )

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
