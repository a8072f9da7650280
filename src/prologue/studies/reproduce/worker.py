"""One piece of a study after the other: trained, measured, and its result written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from prologue.config import RunConfig
from prologue.models.prior import Prior
from prologue.models.weights import model_hashes
from prologue.pipeline import Pipeline
from prologue.studies.demo.ledger import Ledger
from prologue.studies.demo.measure import watched
from prologue.studies.demo.story import Stopwatch, stage_seconds
from prologue.studies.reproduce import state
from prologue.studies.reproduce.measures import Bench, Models, measure
from prologue.studies.reproduce.pictures import FOLDER as PICTURES
from prologue.studies.reproduce.pieces import (
    RESULT_FORMAT,
    Piece,
    Result,
    all_pieces,
    images_seen,
    load_results,
    stage_flops,
)
from prologue.studies.reproduce.request import OVERTIME, Deadline, OutOfTime, StudyRequest
from prologue.studies.reproduce.scales import plain_config, run_config
from prologue.studies.reproduce.setting import STUDY
from prologue.training.loop import Stopped
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import StageName, TrainRequest, train
from prologue.utils.serialization import save_json


class Worker:
    """Trains and measures single pieces."""

    def __init__(self, request: StudyRequest, bench: Bench, deadline: Deadline, progress: Progress) -> None:
        self.request, self.bench, self.deadline, self.progress = request, bench, deadline, progress
        self.out, self.scale = request.out, request.scale
        self._measuring_since = 0.0

    def do(self, piece: Piece) -> None:
        """Train, measure and write the result of one piece; parts that are there already are skipped."""
        self.deadline.check()
        self.progress.say(f"variant {piece.variant}, seed {piece.seed}")
        before = piece.starts_from
        given = None
        if before is not None:
            given = before.run_folder(self.out)
            if not _finished(given, "prior"):  # a packed study took its result along, not its models
                self.progress.say(f"{before.name} is trained again: {piece.name} starts from its models")
                self._train(before, run_config(self.scale, before.variant, before.seed), given, None, None)
            self._measure_again_if_changed(before)
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
        weights = model_hashes(folder)
        models = Models(pipeline.tokenizer, pipeline.prior, piece.seed, weights, piece.name)
        with self.deadline.listening():
            records = measure(models, self.bench, ledger, baseline=baseline, watch=self._watch, pause=self)
        seconds = _seconds(run, plain, ledger, [name for name, record in records.items() if record is not None])
        result: Result = {"format": RESULT_FORMAT, "variant": piece.variant, "seed": piece.seed}
        result |= {"scale": self.request.scale_name, "data": self.request.data}
        result |= {"images": images_seen(self.scale, piece), "flops": stage_flops(self.scale, piece)}
        result |= {"parameters": _parameters(models), "precision": run.config.precision, "weights": weights}
        # None where the prior is that of stage 1, or the last one in any case.
        result |= {"prior_kept_step": run.record["stages"].get("prior", {}).get("kept_step")}
        result |= {"prior_steps": run.config.prior_training.steps}
        result |= {"seconds": seconds, "measures": records, "provenance": dict(self.request.provenance)}
        save_json(piece.result_file(self.out), result)

    def _measure_again_if_changed(self, piece: Piece) -> None:
        """Measure again what was trained again, elsewhere or on other threads, to other weights than its result's."""
        known = load_results(self.out).get(piece)
        if known is not None and known["weights"] != model_hashes(piece.run_folder(self.out)):
            self.progress.say(f"{piece.name} has other weights now, and is measured again")
            self.do(piece)

    def _train(
        self, piece: Piece, config: RunConfig, folder: Path, given: Path | None, ledger: Ledger | None
    ) -> RunFolder:
        stopwatch: Progress = self.progress
        if ledger is not None:
            stopwatch = Stopwatch(self.progress, partial(_keep_time, ledger))
        data = dataclasses.replace(config.data, file_rule=self.bench.data.file_rule)
        config = dataclasses.replace(config, precision=self.bench.precision, data=data)
        request = TrainRequest(config, self.request.data, folder, tokenizer_from=given, device=self.request.device)
        one_stage = config.tokenizer_training.one_stage
        stages: list[StageName] = ["tokenizer"] if one_stage else ["tokenizer", "tokens", "prior"]
        if _finished(folder, stages[-1]):  # also where its tokens did not go along
            return RunFolder.load(folder)
        for stage in stages:
            known = _finished(folder, stage)
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

    def before(self, name: str) -> None:
        """Raise `OutOfTime` where a measurement would take longer than there is time left."""
        self._measuring_since = time.monotonic()
        records = [result["measures"].get(name) for result in load_results(self.out).values()]
        self.deadline.check(self._within([record.get("seconds", 0.0) for record in records if record is not None]))

    def after(self) -> None:
        """A measurement is kept: it need not be made again elsewhere either."""
        self.keep_state()

    def _watch(self, steps: Sequence[int], what: str) -> Iterator[int]:
        """Shows the steps of a measurement, which ends between two of them on a signal or when the time is up."""
        for step in watched(self.progress)(steps, what):
            asked = self.deadline.asked()
            if asked == OVERTIME and self._has_had_less_than_half():
                raise OutOfTime
            if asked not in (None, OVERTIME):
                raise Stopped(f"while measuring ({what})", asked)
            yield step

    def _has_had_less_than_half(self) -> bool:
        """Whether the measurement under way had less than half of this call; else it may never fit, and goes on."""
        return time.monotonic() - self._measuring_since < self._half_a_call

    def _within(self, seconds: Sequence[float]) -> float:
        """What something will take that took so long before; 0 for what may not fit into the next call either."""
        expected = max(seconds, default=0.0)
        return expected if expected < self._half_a_call else 0.0

    @property
    def _half_a_call(self) -> float:
        """Seconds. What takes longer is begun in what is left of a call: it gets no more of the next one."""
        return 30 * (self.request.minutes or 0.0)

    def keep_state(self) -> None:
        """Write what is needed to go on elsewhere, where the scale asks for it."""
        if not self.scale.packed:
            return
        needed, shares = self._state_files(all_pieces(self.request.variants, self.request.seeds))
        for folder in dict.fromkeys(path.parent for path in state.pack(self.out, needed, shares)):
            self.progress.say(f"{folder} does not fit into the packed state: elsewhere it is made anew")

    def _state_files(self, pieces: Sequence[Piece]) -> tuple[list[Path], list[state.Share]]:
        """Settings and results; and the runs of pieces that have none, the piece under way first."""
        needed = [self.out / STUDY, *sorted((self.out / "results").glob("*.json"))]
        todo = [piece for piece in pieces if not piece.result_file(self.out).is_file()]
        folders = []
        for piece in todo:
            before = [] if piece.starts_from is None else [piece.starts_from.run_folder(self.out)]
            folders += [*before, piece.run_folder(self.out), piece.plain_folder(self.out)]
        results = {file.stem for file in needed}
        # Of pieces that this call was not asked for, too.
        runs = (self.out / "runs").glob("*")
        folders += sorted(run for run in runs if run.name.removesuffix("-plain") not in results)
        shares = [_share(folder) for folder in dict.fromkeys(folders) if (folder / "run.json").is_file()]
        return needed, [*shares, *(state.Share([file]) for file in sorted((self.out / PICTURES).glob("*.png")))]


def _share(folder: Path) -> state.Share:
    """A run's finished models; and its checkpoints, which are of no use without its settings."""
    names = ("run.json", "pipeline.json", "metrics.jsonl", "measures.json", "tokenizer", "prior")
    files = [folder / name for name in names if (folder / name).exists()]
    checkpoints = sorted((folder / "checkpoints").glob("*/step-*"))
    # Those of finished stages are for `--extend`, which a study does not do.
    return state.Share(files, [path for path in checkpoints if not _finished(folder, path.parent.name)])


def _finished(folder: Path, stage: str) -> bool:
    return (folder / "run.json").is_file() and RunFolder.load(folder).finished(stage)


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
