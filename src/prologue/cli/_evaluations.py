"""The figures that a run's folder keeps of itself: found again by what they depend on, and by `prologue report`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

from prologue._version import __version__
from prologue.builtin import notes_folder
from prologue.cli.kinds.base import Prepared
from prologue.data.pictures import save_png
from prologue.errors import ConfigError
from prologue.evaluation.runs import Record
from prologue.evaluation.versions import versions_of
from prologue.utils.measurements import plain, write_measurement
from prologue.utils.serialization import load_json

FOLDER = "evaluations"
_NAME = re.compile(r"\w+-[0-9a-f]{12}\.json")


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a run, as it is kept: `RUN/evaluations/KIND-KEY.json` and `KIND-KEY-PICTURE.png`."""

    path: Path
    provenance: dict[str, Any]
    record: Record

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it; a damaged file is a `ConfigError` naming it."""
        whole = load_json(path)
        try:
            (record,) = whole["records"]
            return cls(path, dict(whole["provenance"]), dict(record))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not a measurement of one record: remove it and measure again") from error

    @property
    def pictures(self) -> dict[str, Path]:
        """The picture files by name."""
        stem = self.path.stem
        return {file.stem[len(stem) + 1 :]: file for file in sorted(self.path.parent.glob(f"{stem}-*.png"))}


def key_of(kind: str, prepared: Prepared) -> str:
    """What the figures depend on, as 12 hexadecimal digits: options, weights, images, features, versions."""
    request = {"kind": kind, "prologue": __version__, "versions": versions_of(kind), **prepared.counted}
    return hashlib.sha256(json.dumps(plain(request), sort_keys=True).encode()).hexdigest()[:12]


def place(run: Path, kind: str, key: str) -> Path:
    """The file that holds the figures."""
    return notes_folder(run) / FOLDER / f"{kind}-{key}.json"


def keep(path: Path, provenance: Mapping[str, Any], record: Record, pictures: Mapping[str, Image.Image]) -> Evaluation:
    """Write pictures, then figures: where the figures are, everything is."""
    for name, picture in pictures.items():
        save_png(path.with_name(f"{path.stem}-{name}.png"), picture)
    write_measurement(path, provenance, [record])
    return Evaluation.read(path)


def kept(run: Path) -> tuple[list[Evaluation], list[str]]:
    """All measurements that the run's folder holds, oldest first, and what is wrong with the files left out."""
    found, faults = [], []
    for path in sorted((notes_folder(run) / FOLDER).glob("*.json")):
        if _NAME.fullmatch(path.name):
            try:
                found.append(Evaluation.read(path))
            except ConfigError as error:
                faults.append(str(error))
    return sorted(found, key=lambda item: str(item.provenance.get("time"))), faults
