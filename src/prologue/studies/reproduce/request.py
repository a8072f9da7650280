"""The request of a study, and the deadline of one call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prologue.studies.reproduce.scales import Name, Scale
from prologue.training.loop import StopRequest

OVERTIME = 1000
"""The stop reason after the deadline. Signal numbers are smaller."""


class OutOfTime(Exception):
    """The time of this call is up. The same call continues the study."""


@dataclass(frozen=True)
class StudyRequest:
    """The options of `prologue reproduce`."""

    out: Path
    data: str
    scale_name: str
    scale: Scale
    seeds: tuple[int, ...]
    variants: tuple[Name, ...]
    device: str = "auto"
    features: str = "auto"
    minutes: float | None = None
    """The call stops cleanly after this time."""
    jobs: int = 1
    """Number of runs at a time. Each has its own process if there are several."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    """`time.monotonic()` at the start of the command."""


class Deadline(StopRequest):
    """Requests a stop on a signal and after a point in time."""

    def __init__(self, at: float | None) -> None:
        super().__init__()
        self.at = at

    @classmethod
    def of(cls, request: StudyRequest) -> Deadline:
        """The deadline of the request's `minutes`."""
        return cls(None if request.minutes is None else request.began + 60 * request.minutes)

    def alone(self) -> int | None:
        # `number` stays None after the deadline, so that a later signal still counts.
        return OVERTIME if self.number is None and self.left() <= 0 else self.number

    def left(self) -> float:
        """Seconds to the deadline."""
        return float("inf") if self.at is None else self.at - time.monotonic()

    def check(self, needed: float = 0.0) -> None:
        """Raise `OutOfTime` if fewer than `needed` seconds are left."""
        if self.left() <= needed:
            raise OutOfTime
