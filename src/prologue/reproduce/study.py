"""A study from its settings to its tables: every piece is trained, measured and written at once, or skipped."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prologue.config import RunConfig, load_json, save_json, to_dict
from prologue.data.opening import open_data
from prologue.demo.ledger import Ledger
from prologue.demo.measure import watched
from prologue.demo.story import Stopwatch, stage_seconds
from prologue.device import pick_device
from prologue.errors import EvaluationError, MissingExtraError, RunError
from prologue.evaluation.runs import Features
from prologue.pipeline import Pipeline
from prologue.prior import Prior
from prologue.reproduce import state
from prologue.reproduce.measures import Bench, Models, measure
from prologue.reproduce.pictures import FOLDER as PICTURES
from prologue.reproduce.pieces import (
    RESULT_FORMAT,
    Piece,
    Result,
    all_pieces,
    images_seen,
    load_results,
    seconds_left,
    stage_flops,
)
from prologue.reproduce.scales import Name, Scale, plain_config, run_config
from prologue.reproduce.tables import write_tables
from prologue.training.loop import Stopped, StopRequest
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import StageName, TrainRequest, train
from prologue.weights import WEIGHTS, file_hash

STUDY = "study.json"
STUDY_FORMAT = 1
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
    provenance: Mapping[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    """`time.monotonic()` at the start of the command: its time counts from there."""


@dataclass(frozen=True)
class StudyOutcome:
    """How far a call came."""

    finished: bool
    done: int
    wanted: int
    lines: tuple[str, ...]
    """What the verdicts say."""


class Deadline(StopRequest):
    """Asks to stop on a signal, and once the time is up."""

    def __init__(self, at: float | None) -> None:
        super().__init__()
        self.at = at

    def asked(self) -> int | None:
        if self.number is None and self.left() <= 0:
            self.number = OVERTIME
        return super().asked()

    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.at is None else self.at - time.monotonic()

    def check(self, needed: float = 0.0) -> None:
        """Raise `OutOfTime` where fewer than `needed` seconds are left."""
        if self.left() <= needed:
            raise OutOfTime


def reproduce(request: StudyRequest, progress: Progress) -> StudyOutcome:
    """Do, or continue, a study, and write its tables.

    Raises `Stopped` on a signal while training; a call that runs out of its minutes returns as not finished. Other
    settings than the folder's, but for more seeds and variants, are a `RunError`.
    """
    bench = _open(request, progress)
    minutes = request.minutes
    deadline = Deadline(None if minutes is None else request.began + 60 * minutes)
    pieces = all_pieces(request.variants, request.seeds)
    added = sorted({piece.variant for piece in pieces} - set(request.variants))
    if added:
        progress.say(f"{', '.join(added)} is trained too: the post-hoc prologue starts from it")
    worker = _Worker(request, bench, deadline, progress)
    if load_results(request.out):
        _say_left(request, pieces, progress)
    finished = False
    try:
        for piece in pieces:
            if not piece.result_file(request.out).is_file():
                worker.do(piece)
                _say_left(request, pieces, progress)
                worker.keep_state()
        finished = True
    except OutOfTime:
        pass
    except Stopped as stopped:
        if stopped.signal != OVERTIME:
            raise
    finally:
        results = load_results(request.out)
        lines = write_tables(request.out, results, request.scale, request.provenance) if results else ()
        if not finished:
            worker.keep_state()
    done = sum(piece in results for piece in pieces)
    return StudyOutcome(finished, done, len(pieces), tuple(lines))


def _open(request: StudyRequest, progress: Progress) -> Bench:
    """The study's images and features, after its settings were found to be those of the folder."""
    out, scale = request.out, request.scale
    if not (out / STUDY).is_file():
        if state.is_packed(out):
            progress.say(f"restoring the study from {out / state.FOLDER}")
            state.unpack(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} exists and is not a study: choose another --out, or empty it")
    size = (scale.image_size, scale.image_size)
    data = open_data(request.data, run_config(scale, "2d", 0).data, size)
    for note in data.notes:
        progress.say(note)
    if not len(data.validation):
        raise EvaluationError(f"{request.data} leaves no images held out, and recipes are chosen on held-out images")
    name = "shapes" if request.features == "auto" and request.data == "shapes" else request.features
    features = Features.open(name, request.data, pick_device(request.device))
    if features.extractor is None:
        raise MissingExtraError(f"a distance between images of {request.data}", "lite0")
    settings = {
        "format": STUDY_FORMAT,
        "scale_name": request.scale_name,
        "scale": to_dict(scale),
        "data": request.data,
        "data_fingerprint": data.fingerprint,
        **features.facts(),
    }
    if (out / STUDY).is_file():
        _require_same(out, load_json(out / STUDY), settings)
    else:
        save_json(out / STUDY, settings)
    return Bench(scale, data, features, request.data, out / PICTURES)


def _require_same(out: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
        inner = settings.get("scale")
        plain = {key: value for key, value in settings.items() if key not in ("scale", "data")}
        return plain | ({f"scale.{key}": value for key, value in inner.items()} if isinstance(inner, dict) else {})

    ours, theirs = flat(now), flat(there)
    differences = [
        f"{name}: {theirs.get(name)!r} in the study, {ours.get(name)!r} now"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise RunError(
            f"{out} holds a study with other settings:\n  {listed}\n"
            "Repeat its settings to continue it, or choose another --out"
        )


def _say_left(request: StudyRequest, pieces: Sequence[Piece], progress: Progress) -> None:
    results = load_results(request.out)
    todo = [piece for piece in pieces if piece not in results]
    left = seconds_left(request.scale, results, todo)
    told = f", about {duration(left)} left" if todo and left is not None else ""
    progress.say(f"{len(pieces) - len(todo)} of {len(pieces)} runs are finished{told}")


def duration(seconds: float) -> str:
    """In the two units that fit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class _Worker:
    """Trains and measures single pieces."""

    def __init__(self, request: StudyRequest, bench: Bench, deadline: Deadline, progress: Progress) -> None:
        self.request, self.bench, self.deadline, self.progress = request, bench, deadline, progress
        self.out, self.scale = request.out, request.scale

    def do(self, piece: Piece) -> None:
        """Train, measure and write the result of one piece; parts that are there already are skipped."""
        self.deadline.check()
        self.progress.say(f"variant {piece.variant}, seed {piece.seed}")
        before = piece.starts_from
        given = before.run_folder(self.out) if before is not None else None
        folder = piece.run_folder(self.out)
        ledger = Ledger(folder / "measures.json", self.request.provenance)
        config = run_config(self.scale, piece.variant, piece.seed)
        run = self._train(piece, config, folder, given, ledger)
        plain = None
        if piece.variant == "prologue":
            plain = self._train(piece, plain_config(self.scale, piece.seed), piece.plain_folder(self.out), folder, None)
        baseline_run = plain.path if plain is not None else given
        pipeline = Pipeline.from_pretrained(folder, self.request.device, "fp32")
        baseline = None
        if baseline_run is not None:
            baseline = Prior.from_pretrained(baseline_run / "prior").to(pipeline.device)
        weights = {part: file_hash(folder / part / WEIGHTS) for part in ("tokenizer", "prior")}
        models = Models(pipeline.tokenizer, pipeline.prior, piece.seed, weights, piece.name)
        records = measure(
            models, self.bench, ledger, baseline=baseline, watch=watched(self.progress), check=self._check_record
        )
        seconds = _seconds(run, plain, ledger, [name for name, record in records.items() if record is not None])
        result: Result = {"format": RESULT_FORMAT, "variant": piece.variant, "seed": piece.seed}
        result |= {"scale": self.request.scale_name, "data": self.request.data}
        result |= {"images": images_seen(self.scale, piece), "flops": stage_flops(self.scale, piece)}
        result |= {"parameters": _parameters(models), "precision": run.config.precision, "weights": weights}
        result |= {"seconds": seconds, "measures": records, "provenance": dict(self.request.provenance)}
        save_json(piece.result_file(self.out), result)

    def _train(
        self, piece: Piece, config: RunConfig, folder: Path, given: Path | None, ledger: Ledger | None
    ) -> RunFolder:
        stopwatch: Progress = self.progress
        if ledger is not None:
            stopwatch = Stopwatch(self.progress, partial(_keep_time, ledger))
        request = TrainRequest(config, self.request.data, folder, tokenizer_from=given, device=self.request.device)
        one_stage = config.tokenizer_training.one_stage
        stages: list[StageName] = ["tokenizer"] if one_stage else ["tokenizer", "tokens", "prior"]
        for stage in stages:
            known = (folder / "run.json").is_file() and RunFolder.load(folder).finished(stage)
            if not known:
                self.deadline.check(self._expected_stage(piece, stage, folder))
            run = train(dataclasses.replace(request, stage=stage), stopwatch, self.deadline, self.bench.data)
            if not known:
                self.keep_state()
        return run

    def _expected_stage(self, piece: Piece, stage: str, folder: Path) -> float:
        """What a stage will take, of a packed study that cannot take its checkpoint along; 0 where that is unknown."""
        if not self.scale.packed or (folder / "checkpoints" / stage).exists():
            return 0.0
        key = "plain" if folder == piece.plain_folder(self.out) else stage
        results = load_results(self.out).items()
        return self._within(
            [done["seconds"].get(key, 0.0) for other, done in results if other.variant == piece.variant]
        )

    def _check_record(self, name: str) -> None:
        """Raise `OutOfTime` where a measurement would take longer than there is time left."""
        records = [result["measures"].get(name) for result in load_results(self.out).values()]
        self.deadline.check(self._within([record.get("seconds", 0.0) for record in records if record is not None]))

    def _within(self, seconds: Sequence[float]) -> float:
        """What something will take that took so long before; 0 for what takes longer than a whole call anyway."""
        expected, whole = max(seconds, default=0.0), 60 * (self.request.minutes or 0.0)
        return expected if expected < 0.9 * whole else 0.0

    def keep_state(self) -> None:
        """Write what is needed to go on elsewhere, where the scale asks for it."""
        if not self.scale.packed:
            return
        needed, wanted = self._state_files(all_pieces(self.request.variants, self.request.seeds))
        left = state.pack(self.out, needed, wanted)
        for path in left:
            self.progress.say(f"{path} does not fit into the packed state: elsewhere, its stage begins anew")

    def _state_files(self, pieces: Sequence[Piece]) -> tuple[list[Path], list[Path]]:
        """Settings, results and finished models that are still needed; and checkpoints."""
        needed = [self.out / STUDY, *sorted((self.out / "results").glob("*.json"))]
        wanted = []
        todo = [piece for piece in pieces if not piece.result_file(self.out).is_file()]
        folders = [folder for piece in todo for folder in (piece.run_folder(self.out), piece.plain_folder(self.out))]
        folders += [piece.starts_from.run_folder(self.out) for piece in todo if piece.starts_from is not None]
        for folder in dict.fromkeys(folders):
            if not (folder / "run.json").is_file():
                continue
            names = ("run.json", "pipeline.json", "metrics.jsonl", "measures.json", "tokenizer", "prior")
            needed += [folder / name for name in names if (folder / name).exists()]
            wanted += sorted((folder / "checkpoints").glob("*/step-*"))
        return needed, [*wanted, *sorted((self.out / PICTURES).glob("*.png"))]


def _keep_time(ledger: Ledger, stage: str, seconds: float) -> None:
    """Keep the time of the one stage whose metrics do not tell it."""
    if stage == "tokens":
        ledger.put("tokens", {"kind": "tokens", "seconds": round(seconds, 2)})


def _seconds(run: RunFolder, plain: RunFolder | None, ledger: Ledger, names: Sequence[str]) -> dict[str, float]:
    """Wall time of the parts, over all the calls that made them."""
    config = run.config
    out = {
        "tokenizer": stage_seconds(run.metrics("tokenizer"), config.tokenizer_training.batch),
        "prior": stage_seconds(run.metrics("prior"), config.prior_training.batch),
        "plain": 0.0 if plain is None else stage_seconds(plain.metrics("prior"), config.prior_training.batch),
        "tokens": float(ledger.records.get("tokens", {}).get("seconds", 0.0)),
        "measuring": sum(float(ledger.records[name].get("seconds", 0.0)) for name in names),
    }
    return {name: round(value, 2) for name, value in out.items()}


def _parameters(models: Models) -> dict[str, int]:
    parts = (("tokenizer", models.tokenizer), ("prior", models.prior))
    return {name: sum(tensor.numel() for tensor in model.parameters()) for name, model in parts}
