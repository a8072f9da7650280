"""What a study is asked for, and when a call of it has to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prologue.studies.reproduce.scales import Name, Scale
from prologue.training.loop import StopRequest

OVERTIME = 1000
"""Stands for the signal's number where the time is up; larger than any signal's."""


class OutOfTime(Exception):
    """The time that this call was given is up; the same call continues."""


@dataclass(frozen=True)
class StudyRequest:
    """What `prologue reproduce` is asked for."""

    out: Path
    data: str
    scale_name: str
    scale: Scale
    seeds: tuple[int, ...]
    variants: tuple[Name, ...]
    device: str = "auto"
    features: str = "auto"
    minutes: float | None = None
    """This call stops cleanly after so long."""
    jobs: int = 1
    """Pieces that are made at a time, each in a process of its own where there are several."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    """`time.monotonic()` at the start of the command: its time counts from there."""


class Deadline(StopRequest):
    """Asks to stop on a signal, and once the time is up."""

    def __init__(self, at: float | None) -> None:
        super().__init__()
        self.at = at

    @classmethod
    def of(cls, request: StudyRequest) -> Deadline:
        """The end of a call's minutes."""
        return cls(None if request.minutes is None else request.began + 60 * request.minutes)

    def alone(self) -> int | None:
        # Not kept as the number: a signal after the time is up still counts.
        return OVERTIME if self.number is None and self.left() <= 0 else self.number

    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.at is None else self.at - time.monotonic()

    def check(self, needed: float = 0.0) -> None:
        """Raise `OutOfTime` where fewer than `needed` seconds are left."""
        if self.left() <= needed:
            raise OutOfTime
