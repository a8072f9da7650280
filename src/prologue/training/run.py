"""The run folder: resolved configuration, states of the stages, metrics."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prologue._version import __version__
from prologue.config import RunConfig
from prologue.errors import CheckpointError, ConfigError, RunError
from prologue.training.changes import FREE_FIELDS, Difference, check, grown
from prologue.training.checkpoint import Checkpoints
from prologue.utils.files import temporary_of, write_whole
from prologue.utils.locks import LOCK
from prologue.utils.serialization import from_dict, load_json, save_json, to_dict

RUN_FORMAT = 1
OPENING = "opening.png"
"""A picture that a demo writes before its run exists."""


def is_vacant(path: Path) -> bool:
    """Whether a new run can start here: the folder has at most `OPENING`, a lock, and leftovers of a first write."""
    return not path.exists() or (path.is_dir() and all(_is_no_run(file.name) for file in path.iterdir()))


def _is_no_run(name: str) -> bool:
    return name in (OPENING, LOCK) or temporary_of(name) in ("run.json", OPENING)


class RunFolder:
    """One run: `run.json`, `metrics.jsonl`, `checkpoints/`, and the paths of models and tokens."""

    def __init__(self, path: Path, record: dict[str, Any], config: RunConfig) -> None:
        self.path = path
        self.record = record
        self.config = config

    @classmethod
    def open(
        cls,
        path: Path,
        config: RunConfig,
        facts: Mapping[str, Any],
        extend: bool = False,
        changed_data: Callable[[], str | None] = lambda: None,
    ) -> RunFolder:
        """Create the run, or continue it.

        Args:
            facts: further JSON values that must not change (data, tokenizer).
            extend: allow more steps, also of finished stages, and other learning rates.
            changed_data: describes the image files that differ from those of the run, if this is known.

        Raises:
            RunError: settings have changed, or the folder is not a run of this format. Nothing is written then.
        """
        plain_facts = json.loads(json.dumps(dict(facts)))
        if not (path / "run.json").exists():
            if not is_vacant(path):
                raise RunError(f"{path} exists and is not a run folder: choose another --out, or empty it")
            return cls._create(path, config, plain_facts)
        run = cls.load(path)
        changed = [
            difference
            for difference in (
                *differences(run.record["config"], to_dict(config)),
                *differences(run.record["facts"], plain_facts),
            )
            if difference[0] not in FREE_FIELDS
        ]
        if changed and not run.record["stages"]:  # no stage has started
            return cls._create(path, config, plain_facts)
        check(path, run.record["stages"], changed, extend, lambda item: _told(*item, changed_data))
        run.config = config
        run.record["facts"] |= {key: value for key, value in plain_facts.items() if key in FREE_FIELDS}
        if changed:
            run._change(changed)
        return run

    def _change(self, changed: Sequence[Difference]) -> None:
        """Store changed settings and record the change; stages with more steps are no longer finished."""
        stages, more = self.record["stages"], grown(changed)
        for stage, (before, _) in more.items():
            if self.finished(stage):
                self._reopen(stage, before, more)
        fields = {name: [there, now] for name, there, now in changed}
        self.record["config"] = to_dict(self.config)
        self.record.setdefault("changes", []).append(
            {"at": {name: self.done(name) for name in stages}, "fields": fields}
        )
        self.save()

    def _reopen(self, stage: str, steps: int, more: Mapping[str, Any]) -> None:
        """Continue a finished stage after its `steps` steps, and also the stages that use its result."""
        stages, known = self.record["stages"], self.record["stages"][stage]
        if stage == "tokenizer":
            if "taken_from" in known and not self.config.tokenizer.traits.post_hoc:
                raise RunError(
                    f"{self.path} took its tokenizer from {known['taken_from']} and trained none itself: extend that "
                    "run, and train a prior on it in another --out"
                )
            if not self.checkpoints(stage).steps():
                raise RunError(
                    f"{self.path} holds no checkpoint of its finished stage 'tokenizer' (earlier versions removed it), "
                    "and its weights alone are not enough to continue: extend only --prior-training.steps, or choose "
                    "another --out"
                )
            if self.finished("prior") and "prior" not in more:
                raise RunError(
                    "a longer stage 'tokenizer' changes the tokens, which the finished prior was not trained on: raise "
                    "--prior-training.steps too"
                )
            stages.get("tokens", {}).pop("finished", None)
            if "prior" in stages:
                stages["prior"].pop("tokenizer", None)  # it continues on the new tokens
                stages["prior"]["stale"] = True
        elif not self.checkpoints(stage).steps():
            known["warm_start"] = steps
        known["finished"] = False

    def done(self, stage: str) -> int:
        """Finished steps of a stage whose result is kept."""
        newest = max(self.checkpoints(stage).steps(), default=0)
        known = self.record["stages"].get(stage, {})
        return max(newest, int(known.get("warm_start", 0)), int(known.get("steps", 0)) if self.finished(stage) else 0)

    @classmethod
    def _create(cls, path: Path, config: RunConfig, facts: dict[str, Any]) -> RunFolder:
        versions = {"prologue": __version__, "torch": torch.__version__, "python": platform.python_version()}
        record = {
            "format": RUN_FORMAT,
            "config": to_dict(config),
            "facts": facts,
            "versions": versions,
            "stages": {},
        }
        run = cls(path, record, config)
        run.save()
        return run

    @classmethod
    def load(cls, path: Path) -> RunFolder:
        """Open an existing run."""
        try:
            record = load_json(path / "run.json")
        except ConfigError as error:
            raise CheckpointError(f"{path} is not a run folder: {error}") from error
        found = record.get("format") if isinstance(record, dict) else None
        if found != RUN_FORMAT:
            raise RunError(
                f"{path} is a run of format {found}; this version ({__version__}) reads format {RUN_FORMAT}: "
                "use the version that wrote it, or choose another folder"
            )
        try:
            _add_first_rule(record["config"])
            config = from_dict(RunConfig, record["config"], "config")
        except (ConfigError, KeyError) as error:
            raise CheckpointError(f"{path / 'run.json'} does not fit this version: {error}") from error
        record["config"] = to_dict(config)  # fields that its version did not have get their defaults
        return cls(path, record, config)

    def reload(self) -> None:
        """Read `run.json` again after another process has written it."""
        self.record = self.load(self.path).record

    def save(self) -> None:
        save_json(self.path / "run.json", self.record)

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / "tokenizer"

    @property
    def prior_folder(self) -> Path:
        return self.path / "prior"

    @property
    def tokens_folder(self) -> Path:
        return self.path / "tokens"

    @property
    def samples_folder(self) -> Path:
        return self.path / "samples"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints" / stage, self.config.keep_checkpoints)

    def finished(self, stage: str) -> bool:
        return bool(self.record["stages"].get(stage, {}).get("finished"))

    def changed(self, stage: str) -> bool:
        """Whether a training setting of a stage changed after the stage had started."""
        changes = self.record.get("changes", [])
        return any(name.startswith(f"{stage}_training.") for change in changes for name in change["fields"])

    def set_stage(self, stage: str, **values: Any) -> None:
        """Store values of a stage in `run.json`."""
        self.record["stages"].setdefault(stage, {}).update(values)
        self.save()

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Feature networks in the losses of the tokenizer, in this run or in the run that trained it."""
        taken = self.record["stages"].get("tokenizer", {}).get("trained_on")
        if taken is not None:
            return tuple(taken)
        training = self.config.tokenizer_training
        return ("lite0",) if training.perceptual == "lite0" and training.perceptual_weight > 0 else ()

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The log records of one stage, or of all."""
        return [record for record in self._records() if stage is None or record.get("stage") == stage]

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`. Numbers that are not finite become null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")

    def forget_metrics(self, stage: str, done: int) -> None:
        """Remove a stage's records after step `done`, which a resumed training writes again."""
        if not self.metrics_file.exists():
            return
        kept = [r for r in self._records() if r.get("stage") != stage or r.get("step", 0) <= done]
        write_whole(self.metrics_file, "".join(json.dumps(r) + "\n" for r in kept).encode())

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self.metrics_file.exists():
            return
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the incomplete last line of a run that was killed
                continue


def _add_first_rule(config: Any) -> None:
    """Add file rule 1 to runs of the versions that had no other rule."""
    if isinstance(config, dict) and isinstance(config.get("data"), dict):
        config["data"].setdefault("file_rule", 1)


def _told(name: str, there: Any, now: Any, changed_data: Callable[[], str | None]) -> str:
    """Describe one changed setting."""
    if name != "data_fingerprint":
        return f"{name}: {there!r} in the run, {now!r} now"
    files = changed_data() or "images were added, removed or changed, or they are cropped or labelled in another way"
    return f"{name}: {files} ({there} in the run, {now} now)"


def differences(there: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The differences of nested settings: dotted name, value there, value now; None for a missing value."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted({*there, *now}):
            yield from differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif there != now:
        yield name, there, now
