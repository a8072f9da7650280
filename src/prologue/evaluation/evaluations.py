"""The measurements that a run's folder keeps: measured once, and found again by what their figures depend on."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prologue._version import __version__
from prologue.builtin import notes_folder
from prologue.data.pictures import save_png
from prologue.errors import ConfigError
from prologue.evaluation.kinds.base import Kind, Prepared
from prologue.evaluation.runs import Record
from prologue.evaluation.versions import versions_of
from prologue.utils.files import is_stream
from prologue.utils.launcher import launched
from prologue.utils.locks import file_lock
from prologue.utils.measurements import plain, provenance, write_measurement
from prologue.utils.processes import main_decides
from prologue.utils.serialization import load_json

FOLDER = "evaluations"
_NAME = re.compile(r"[\w.]+-[0-9a-f]{12}\.json")


@dataclass(frozen=True)
class Evaluation:
    """A measurement of a run, stored as `RUN/evaluations/KIND-KEY.json` and `KIND-KEY-PICTURE.png`."""

    path: Path
    provenance: dict[str, Any]
    record: Record

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; a damaged file is a `ConfigError`."""
        content = load_json(path)
        try:
            (record,) = content["records"]
            return cls(path, dict(content["provenance"]), dict(record))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not a measurement of one record: remove it and measure again") from error

    @property
    def kind(self) -> str:
        """The name of the kind: that of the record, else that of the file."""
        return str(self.record.get("kind") or self.path.stem.rpartition("-")[0])

    @property
    def pictures(self) -> dict[str, Path]:
        """The picture files by name."""
        stem = self.path.stem
        return {file.stem[len(stem) + 1 :]: file for file in sorted(self.path.parent.glob(f"{stem}-*.png"))}


def evaluate(kind: Kind[Any], prepared: Prepared, command: Sequence[str] = ()) -> Evaluation:
    """The figures of a prepared measurement: those that the run's folder has, or new ones, which it then keeps.

    A second call with the same request waits for the first one and finds its figures. With a launcher, all processes
    must call this; only the main one writes. `command` are the words after `prologue`, for the provenance.
    """
    path = place(kind, prepared)
    with _locked(path, prepared):
        if not main_decides(path.is_file() and not prepared.options.again and not prepared.anew):
            return _measured(kind, prepared, path, command)
        found = Evaluation.read(path)
        print(f"found in {path}, measured {found.provenance['time']}; --again measures anew", file=sys.stderr)
        return found


def place(kind: Kind[Any], prepared: Prepared) -> Path:
    """The file of the figures."""
    return path_of(prepared.options.run, kind.name, key_of(kind, prepared))


def path_of(run: Path, kind: str, key: str) -> Path:
    """The file of the figures with this key."""
    return notes_folder(run) / FOLDER / f"{kind.replace(':', '.')}-{key}.json"


def key_of(kind: Kind[Any], prepared: Prepared) -> str:
    """What identifies the figures (options, weights, images, features, versions), as 12 hexadecimal digits."""
    versions = versions_of(kind.name, kind.version)
    request = {"kind": kind.name, "prologue": __version__, "versions": versions, **prepared.counted}
    return hashlib.sha256(json.dumps(plain(request), sort_keys=True).encode()).hexdigest()[:12]


def kept(run: Path) -> tuple[list[Evaluation], list[str]]:
    """All measurements in the run's folder, oldest first, and messages on damaged files."""
    found, faults = [], []
    for path in sorted((notes_folder(run) / FOLDER).glob("*.json")):
        if _NAME.fullmatch(path.name):
            try:
                found.append(Evaluation.read(path))
            except ConfigError as error:
                faults.append(str(error))
    return sorted(found, key=lambda item: str(item.provenance.get("time"))), faults


@contextmanager
def _locked(path: Path, prepared: Prepared) -> Iterator[None]:
    """Lock the file of the figures and the file that the measurement writes; a read-only folder needs no lock."""
    with ExitStack() as held:
        if launched().main:
            if prepared.writes is not None and not is_stream(prepared.writes):
                held.enter_context(file_lock(prepared.writes))
            with suppress(OSError):
                held.enter_context(file_lock(path, print_waiting))
        yield


def print_waiting() -> None:
    print("another process measures the same: waiting for its figures", file=sys.stderr, flush=True)


def _measured(kind: Kind[Any], prepared: Prepared, path: Path, command: Sequence[str]) -> Evaluation:
    begin = time.perf_counter()
    measured = prepared.measure()
    seconds = round(time.perf_counter() - begin, 2)
    record = plain({"kind": kind.name, **measured.record})
    record.setdefault("notes", [])
    versions = versions_of(kind.name, kind.version)
    origin = plain(provenance(command, **prepared.stated, versions=versions, seconds=seconds))
    if launched().main:
        try:
            for name, picture in measured.pictures.items():
                save_png(path.with_name(f"{path.stem}-{name}.png"), picture)
            write_measurement(path, origin, [record])  # last: where the figures are, all pictures are
        except OSError as error:
            print(f"note: the figures are not kept in {path.parent}: {error}", file=sys.stderr)
    return Evaluation(path, origin, record)
