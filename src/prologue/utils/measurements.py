"""Files of measurements, `{"provenance": {…}, "records": [{…}]}`, and the contents of the provenance."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prologue._version import __version__
from prologue.errors import RunError
from prologue.utils.files import is_stdout
from prologue.utils.serialization import save_json


def write_measurement(path: Path, provenance: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """Write a measurement atomically. Numbers that are not finite become null."""
    save_json(path, plain({"provenance": dict(provenance), "records": list(records)}))


def export_measurement(
    path: Path | None, provenance: Mapping[str, Any], records: Iterable[Mapping[str, Any]], kept: str = "printed above"
) -> None:
    """Write the file of `--json`, if there is one.

    Raises:
        RunError: the file cannot be written. The message says where the results are `kept`.
    """
    if path is None:
        return
    try:
        write_measurement(path, provenance, records)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and is_stdout(path):  # the caller handles this like any closed output
            raise
        raise RunError(f"--json {path} cannot be written ({error.strerror}); the figures are {kept}") from error


def provenance(command: Sequence[str], **extra: Any) -> dict[str, Any]:
    """The `prologue` command line, versions, machine and time (UTC) of a measurement, then `extra`."""
    return {
        "command": shlex.join(["prologue", *command]),
        "prologue": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }


def plain(value: Any) -> Any:
    """The value as JSON values: paths become text, scalar arrays numbers, tuples lists, infinity and NaN null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a numpy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
