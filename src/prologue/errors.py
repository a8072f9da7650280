"""Errors that a user can cause. A message names the file, field or id at fault and says what to do.

The command line prints the message without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `did you mean 'NAME'? ` with the nearest known name, or an empty string if none is near."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


class PrologueError(Exception):
    """Base class of all errors that a user can cause."""


class ConfigError(PrologueError):
    """A configuration value, preset or option is unknown or invalid."""


class DataError(PrologueError):
    """Images, labels or a data source are missing, empty, damaged or contradictory."""


class CheckpointError(PrologueError):
    """A weight file or checkpoint is missing, truncated, a pickle, or has the wrong shapes."""


class RunError(PrologueError):
    """A run folder cannot be used: other settings, another version, or no space."""


class TrainingError(PrologueError):
    """Training cannot continue with these settings, because gradients are not finite."""


class SamplingError(PrologueError):
    """A sampling request is invalid: its guidance, filters, classes or given tokens."""


class UnknownOptionError(SamplingError, TypeError):
    """A call does not have this option; also a `TypeError`, as for any Python function."""


class EvaluationError(PrologueError):
    """A measurement is not possible on the given inputs."""


class MissingExtraError(PrologueError):
    """A feature needs an optional extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra [{extra}]: pip install 'prologue-ar[{extra}]'")
        self.extra = extra
