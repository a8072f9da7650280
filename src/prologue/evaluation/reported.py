"""What a report reads of a run: configuration, training and measurements, and which files are damaged."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prologue.config import RunConfig
from prologue.errors import CheckpointError, ConfigError, RunError
from prologue.evaluation.evaluations import store_of
from prologue.evaluation.kinds import known_kind
from prologue.evaluation.kinds.base import Kind, Options, Prepared, Row, note_sentences, row
from prologue.evaluation.runs import Record, RunInfo
from prologue.evaluation.store import Result
from prologue.sampling.manifest import NAME as MANIFEST
from prologue.sampling.manifest import Manifest
from prologue.training.run import RunFolder
from prologue.utils.serialization import load_json

NO_OPTION = ("again", "batch", "device", "json")
"""Options that change no figure: measurements that differ in them alone are repetitions."""
_MISFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""Errors of reading a record of another form."""


@dataclass(frozen=True)
class Reported:
    """A run in a report. `config` is None for imported and exported folders."""

    name: str
    path: Path
    config: RunConfig | None
    settings: dict[str, str]
    """All fields of the configuration by their dotted names."""
    metrics: list[dict[str, Any]]
    manifest: Manifest | None
    data: str | None
    """The data of the training."""
    weights: dict[str, str]
    evaluations: list[Result]
    """Oldest first."""
    faults: list[str]
    """Messages on files that could not be read."""

    @classmethod
    def load(cls, path: Path, name: str) -> Reported:
        """Read a folder. One that is neither a run nor an imported model is a `RunError`."""
        begun = (path / "run.json").is_file()
        if not begun and not (path / MANIFEST).is_file():
            lacks = "does not exist" if not path.exists() else "is neither a run nor an imported folder"
            raise RunError(f"{path} {lacks}: give folders that `prologue train` or `prologue import` made")
        folder = RunFolder.load(path) if begun else None
        manifest, faults = _manifest(path)
        settings = folder.record["config"] if folder is not None else _model_settings(path, faults)
        evaluations, damaged = store_of(path).all()
        return cls(
            name,
            path,
            None if folder is None else folder.config,
            dict(_flat(settings)),
            [] if folder is None else folder.metrics(),
            manifest,
            folder.record["facts"].get("data") if folder is not None else manifest.data if manifest else None,
            RunInfo(path, manifest or Manifest()).weights,
            evaluations,
            [*faults, *damaged],
        )


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest different names of the folders: the last parts of their paths."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a run is named twice: name each folder once")


def _manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest; None, without a message, if the training is not finished."""
    if not (path / MANIFEST).is_file():
        return None, []
    try:
        return Manifest.load(path), []
    except CheckpointError as error:
        return None, [str(error)]


def _model_settings(path: Path, faults: list[str]) -> dict[str, Any]:
    settings = {}
    for part in ("tokenizer", "prior"):
        try:
            settings[part] = load_json(path / part / "config.json")
        except ConfigError as error:
            faults.append(str(error))
    return settings


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


@dataclass(frozen=True)
class Shown:
    """A measurement in the words of its kind."""

    run: Reported
    evaluation: Result
    asked: tuple[str, ...]
    """The options with their values on which its figures depend."""
    rows: list[Row]
    sentences: list[str]

    @classmethod
    def of(cls, run: Reported, evaluation: Result) -> Shown:
        """The measurement in words; a `ConfigError` if its record has another form."""
        kind, record = kind_named(kind_of(evaluation)), evaluation.record
        try:
            rows = [(str(label), str(figure), str(interval)) for label, figure, interval in kind.rows(record)]
            sentences = [*kind.sentences(record), *note_sentences({"notes": [], **record}), *_stale(run, evaluation)]
            return cls(run, evaluation, asked(evaluation), rows, sentences)
        except _MISFIT as error:
            version = evaluation.provenance.get("prologue", "another version")
            raise ConfigError(
                f"{evaluation.path} does not have the form that this version reads (it was written by {version}): "
                "measure again with --again"
            ) from error

    @property
    def command(self) -> str:
        return str(self.evaluation.provenance.get("command", ""))

    @property
    def time(self) -> str:
        """Time of the measurement, to the minute."""
        return str(self.evaluation.provenance.get("time", "at an unknown time")).replace("T", " ")[:16]

    @property
    def origin(self) -> str:
        """Time, duration and version of the measurement."""
        facts = self.evaluation.provenance
        seconds = facts.get("seconds")
        took = f" in {seconds:g} s" if isinstance(seconds, int | float) else ""
        return f"measured {self.time} UTC{took} with prologue {facts.get('prologue', 'of an unknown version')}"


class UnknownKind(Kind[Options]):
    """A kind that this process does not know: single values of the record, as they were written."""

    options = Options

    def __init__(self, name: str) -> None:
        super().__init__(name)
        module, outside, _ = name.partition(":")
        how = f" (`prologue --import {module} report` does)" if outside else ""
        self.summary = f"this version does not know this kind{how}, so its figures are shown as they were written"

    def prepare(self, options: Options) -> Prepared:
        raise NotImplementedError

    def rows(self, record: Record) -> Iterator[Row]:
        for name, value in record.items():
            if name == "kind" or isinstance(value, dict | list) or name.endswith(("_low", "_high")):
                continue
            if isinstance(value, float) and f"{name}_low" in record and f"{name}_high" in record:
                yield row(name, record, name, ".4g")
            else:
                yield name, f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value), ""

    def sentences(self, record: Record) -> Iterator[str]:
        yield from ()


def kind_of(evaluation: Result) -> str:
    """The name of the kind: that of the record, else that of the file."""
    return str(evaluation.record.get("kind") or evaluation.path.stem.rpartition("-")[0])


def kind_named(name: str) -> Kind[Any]:
    """The kind of a stored record. Nothing outside the package is imported."""
    return known_kind(name) or UnknownKind(name)


def _stale(run: Reported, evaluation: Result) -> Iterator[str]:
    """Says that the run's weights are not those that were measured."""
    measured = evaluation.provenance.get("weights") or {}
    changed = [part for part, digest in measured.items() if run.weights.get(part, digest) != digest]
    if changed:
        yield f"The run's {' and '.join(changed)} changed after this was measured: measure again."


def asked(evaluation: Result) -> tuple[str, ...]:
    """The options of the command on which figures depend, sorted: equal for the same request."""
    run = evaluation.provenance.get("run")
    options: list[list[str]] = []
    for word in shlex.split(str(evaluation.provenance.get("command", "")))[3:]:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options.append([name.replace("_", "-"), *([value] if equals else [])])
        elif options and (run is None or Path(word) != Path(run)):
            options[-1].append(word)
    counted = [option for option in options if option[0].removeprefix("--") not in NO_OPTION]
    return tuple(shlex.join(option) for option in sorted(counted))
