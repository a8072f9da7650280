"""What `prologue report` reads of a run: configuration, training, measurements, and what is wrong with them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from prologue.cli._evaluations import Evaluation, kept
from prologue.cli.kinds.base import Row, last_sentences, row
from prologue.config import RunConfig
from prologue.errors import CheckpointError, ConfigError, RunError
from prologue.evaluation.runs import Record, RunInfo
from prologue.sampling.manifest import NAME as MANIFEST
from prologue.sampling.manifest import Manifest
from prologue.training.run import RunFolder
from prologue.utils.serialization import load_json

NO_OPTION = ("again", "batch", "device", "json")
"""Options that change no figure, so that measurements which differ in them alone are one measured twice."""
_MISFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading a record of another form raises."""


@dataclass(frozen=True)
class Reported:
    """A run as the report shows it. `config` is None for imported and exported folders."""

    name: str
    path: Path
    config: RunConfig | None
    settings: dict[str, str]
    """All fields of the configuration by their dotted names."""
    metrics: list[dict[str, Any]]
    manifest: Manifest | None
    data: str | None
    """What it was trained on."""
    weights: dict[str, str]
    evaluations: list[Evaluation]
    """Oldest first."""
    faults: list[str]
    """Files that could not be read, and why."""

    @classmethod
    def load(cls, path: Path, name: str) -> Reported:
        """Read it. A folder that is neither a run nor an imported one is a `RunError`."""
        begun = (path / "run.json").is_file()
        if not begun and not (path / MANIFEST).is_file():
            lacks = "does not exist" if not path.exists() else "is neither a run nor an imported folder"
            raise RunError(f"{path} {lacks}: give folders that `prologue train` or `prologue import` made")
        folder = RunFolder.load(path) if begun else None
        manifest, faults = _manifest(path)
        settings = folder.record["config"] if folder is not None else _model_settings(path, faults)
        evaluations, damaged = kept(path)
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
    """Short names that tell the folders apart: the last parts of their paths, as many as that takes."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a run is named twice: name each folder once")


def _manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    """None, without a fault, where the training is not finished."""
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
    evaluation: Evaluation
    asked: tuple[str, ...]
    """Its options with their values, those that figures depend on."""
    rows: list[Row]
    sentences: list[str]

    @property
    def command(self) -> str:
        return str(self.evaluation.provenance.get("command", ""))

    @property
    def time(self) -> str:
        """When it was measured, to the minute."""
        return str(self.evaluation.provenance.get("time", "at an unknown time")).replace("T", " ")[:16]

    @property
    def origin(self) -> str:
        """When, how long it took, and with which version."""
        facts = self.evaluation.provenance
        seconds = facts.get("seconds")
        took = f" in {seconds:g} s" if isinstance(seconds, int | float) else ""
        return f"measured {self.time} UTC{took} with prologue {facts.get('prologue', 'of an unknown version')}"


def kind_of(evaluation: Evaluation) -> str:
    """What its record says it is, or the name of its file."""
    return str(evaluation.record.get("kind") or evaluation.path.stem.rpartition("-")[0])


def shown(run: Reported, evaluation: Evaluation) -> Shown:
    """The measurement in words; a `ConfigError` where its record does not fit this version."""
    module = _kind_module(kind_of(evaluation))
    record = evaluation.record
    try:
        if module is None:
            rows, sentences = list(_plain_rows(record)), [str(note) for note in record.get("notes") or ()]
        else:
            rows = [(str(label), str(figure), str(interval)) for label, figure, interval in module.rows(record)]
            sentences = [*module.sentences(record), *last_sentences(record)]
        return Shown(run, evaluation, asked(evaluation), rows, [*sentences, *_stale(run, evaluation)])
    except _MISFIT as error:
        version = evaluation.provenance.get("prologue", "another version")
        raise ConfigError(
            f"{evaluation.path} does not have the form that this version reads (it was written by {version}): "
            "measure again with --again"
        ) from error


def is_known(kind: str) -> bool:
    """Whether this version can put the kind in words."""
    return _kind_module(kind) is not None


def example(kind: str) -> str:
    """Options that the kind needs, to begin with; none for most."""
    return str(getattr(_kind_module(kind), "EXAMPLE", ""))


def _kind_module(kind: str) -> Any | None:
    if not kind.isidentifier():
        return None
    name = f"prologue.cli.kinds.{kind}"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None
    return module if hasattr(module, "rows") and hasattr(module, "sentences") else None


def _plain_rows(record: Record) -> Iterator[Row]:
    """The single values of a record of an unknown kind, with the intervals that stand beside them."""
    for name, value in record.items():
        if name == "kind" or isinstance(value, dict | list) or name.endswith(("_low", "_high")):
            continue
        if isinstance(value, float) and f"{name}_low" in record and f"{name}_high" in record:
            yield row(name, record, name, ".4g")
        else:
            yield name, f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value), ""


def _stale(run: Reported, evaluation: Evaluation) -> Iterator[str]:
    """What to know of figures whose weights are not the run's any more."""
    measured = evaluation.provenance.get("weights") or {}
    changed = [part for part, digest in measured.items() if run.weights.get(part, digest) != digest]
    if changed:
        yield f"The run's {' and '.join(changed)} changed after this was measured: measure again."


def asked(evaluation: Evaluation) -> tuple[str, ...]:
    """The options of the command that figures depend on, sorted: the same for the same question."""
    run = evaluation.provenance.get("run")
    options: list[list[str]] = []
    for word in shlex.split(str(evaluation.provenance.get("command", "")))[3:]:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options.append([name.replace("_", "-"), *([value] if equals else [])])
        elif options and (run is None or Path(word) != Path(run)):
            options[-1].append(word)
    kept_options = [option for option in options if option[0].removeprefix("--") not in NO_OPTION]
    return tuple(shlex.join(option) for option in sorted(kept_options))
