"""The store of results: one JSON file per result, found again by everything that the result depends on.

A file is `NAME-KEY.json` with `{"provenance": {…}, "records": [record]}`. KEY is a hash of the inputs. Pictures of the
result are `NAME-KEY-PICTURE.png`. `read_ledger` and `read_journal` read the formats of earlier versions.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from PIL import Image

from prologue.data.pictures import save_png
from prologue.errors import ConfigError
from prologue.evaluation.runs import Record
from prologue.evaluation.versions import completed
from prologue.utils.locks import file_lock
from prologue.utils.measurements import plain, write_measurement
from prologue.utils.serialization import load_json

_FILE = re.compile(r"[\w.-]+-[0-9a-f]{12}\.json")


def key_of(inputs: Any) -> str:
    """A hash of JSON values, as 12 hexadecimal digits. The order of keys does not matter."""
    return hashlib.sha256(_text(inputs).encode()).hexdigest()[:12]


def _text(inputs: Any) -> str:
    return json.dumps(plain(inputs), sort_keys=True)


@dataclass(frozen=True)
class Result:
    """A stored result. `path` is its file."""

    path: Path
    provenance: dict[str, Any]
    record: Record

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a result file. Raises `ConfigError` for a damaged one."""
        content = load_json(path)
        try:
            (record,) = content["records"]
            return cls(path, dict(content["provenance"]), dict(record))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not a measurement of one record: remove it and measure again") from error

    @property
    def pictures(self) -> dict[str, Path]:
        """The picture files by name."""
        stem = self.path.stem
        return {file.stem[len(stem) + 1 :]: file for file in sorted(self.path.parent.glob(f"{stem}-*.png"))}


@dataclass(frozen=True)
class Store:
    """The results in a folder, which is created with the first result."""

    folder: Path
    earlier: Mapping[str, Result] = field(default_factory=dict, repr=False)
    """Results in the files of an earlier version, by `NAME-KEY`."""

    def path(self, name: str, inputs: Any) -> Path:
        """The file of the result of `name` that depends on `inputs`, whether it exists or not."""
        return self.folder / f"{name}-{key_of(inputs)}.json"

    def find(self, name: str, inputs: Any) -> Result | None:
        """The stored result, or None. Raises `ConfigError` for a damaged file."""
        path = self.path(name, inputs)
        return Result.read(path) if path.is_file() else self.earlier.get(path.stem)

    def keep(
        self,
        name: str,
        inputs: Any,
        record: Record,
        provenance: Mapping[str, Any],
        pictures: Mapping[str, Image.Image] | None = None,
    ) -> Result:
        """Write the pictures, then the result, each atomically. Raises `OSError` where the folder is not writable."""
        path = self.path(name, inputs)
        for title, picture in (pictures or {}).items():
            save_png(path.with_name(f"{path.stem}-{title}.png"), picture)
        write_measurement(path, provenance, [record])
        return Result.read(path)

    def get(
        self,
        name: str,
        inputs: Any,
        make: Callable[[], Record],
        *,
        provenance: Mapping[str, Any] | None = None,
        on_error: Callable[[OSError], None] | None = None,
    ) -> Result:
        """The stored result, or the result of `make`, which is stored with its time and duration.

        `on_error` is called if the result cannot be written. Without it, the `OSError` is raised.
        """
        with self.lock(name, inputs):
            found = self.find(name, inputs)
            if found is not None:
                return found
            begin = time.perf_counter()
            record = make()
            facts = {**(provenance or {}), "time": datetime.now(UTC).isoformat(timespec="seconds")}
            facts["seconds"] = round(time.perf_counter() - begin, 2)
            try:
                return self.keep(name, inputs, record, facts)
            except OSError as error:
                if on_error is None:
                    raise
                on_error(error)
                return Result(self.path(name, inputs), plain(facts), plain(record))

    @contextmanager
    def lock(self, name: str, inputs: Any, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of one result. Another process with the same result waits, after a call of `waiting`.

        There is no lock in a folder that is not writable.
        """
        with ExitStack() as held:
            with suppress(OSError):
                held.enter_context(file_lock(self.path(name, inputs), waiting))
            yield

    def all(self) -> tuple[list[Result], list[str]]:
        """All results in the folder, oldest first, and the errors of unreadable files."""
        found, faults = [], []
        for path in sorted(self.folder.glob("*.json")):
            if _FILE.fullmatch(path.name):
                try:
                    found.append(Result.read(path))
                except ConfigError as error:
                    faults.append(str(error))
        return sorted(found, key=lambda result: str(result.provenance.get("time"))), faults

    def remove(self) -> None:
        """Delete the folder with all results."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)


def read_journal(path: Path, name: str) -> dict[str, Result]:
    """The points of a sweep that an earlier version stopped, for `Store.earlier`. A truncated line is left out.

    Each line is `{"request": inputs as JSON text, "figures": record}`.
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            key, record = key_of(json.loads(entry["request"])), dict(entry["figures"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue
        found[f"{name}-{key}"] = Result(path, {}, record)
    return found


def read_ledger(path: Path, kinds: tuple[str, ...]) -> dict[str, Result]:
    """The records of a study's `measures.json`, which earlier versions wrote, for `Store.earlier`.

    Each record contains its `name`, `inputs` and `seconds`. Of the versions in the inputs, only those of `kinds` are
    kept; missing versions are 1. An unreadable file has no records.
    """
    found = {}
    try:
        for stored in load_json(path)["records"] if path.is_file() else []:
            record = {key: value for key, value in stored.items() if key not in ("name", "inputs", "seconds")}
            if "inputs" in stored:
                versions = completed(stored["inputs"].get("versions"))
                inputs = {**stored["inputs"], "versions": {kind: versions[kind] for kind in kinds}}
                result = Result(path, {"seconds": stored.get("seconds", 0.0)}, record)
                found[f"{stored['name']}-{key_of(inputs)}"] = result
    except (ConfigError, KeyError, TypeError, AttributeError):
        return {}
    return found
