"""Typed errors: each names the file, field or id at fault and what to do about it.

The command line prints their text without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`did you mean 'NAME'? ` with the nearest known name; empty where none is near."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


class PrologueError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(PrologueError):
    """A configuration value, preset or option is unknown or impossible."""


class DataError(PrologueError):
    """Images, labels or a data source are missing, empty, damaged or contradictory."""


class CheckpointError(PrologueError):
    """A weight file or checkpoint is missing, truncated, of another shape, or a pickle."""


class RunError(PrologueError):
    """A run folder cannot be used as asked: other settings, another version, no room."""


class TrainingError(PrologueError):
    """A training that cannot go on with its settings: its gradients are not finite."""


class SamplingError(PrologueError):
    """A sampling request that cannot be satisfied: guidance, filters, classes, given tokens."""


class UnknownOptionError(SamplingError, TypeError):
    """An option that a call does not have; a `TypeError` too, as of any Python function."""


class EvaluationError(PrologueError):
    """A measurement that cannot be made on what was given."""


class MissingExtraError(PrologueError):
    """A feature needs an optional extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra [{extra}]: pip install 'prologue-ar[{extra}]'")
        self.extra = extra
