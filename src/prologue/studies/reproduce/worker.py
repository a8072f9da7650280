"""Training and measuring of one piece of a study."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prologue.config import RunConfig
from prologue.evaluation.runs import Record
from prologue.evaluation.store import Store, read_ledger
from prologue.models.prior import Prior
from prologue.models.weights import model_hashes
from prologue.pipeline import Pipeline
from prologue.studies.reproduce.measures import KINDS, Bench, Models, measure
from prologue.studies.reproduce.pieces import RESULT_FORMAT, Piece, Result, images_seen, load_results, stage_flops
from prologue.studies.reproduce.request import OVERTIME, Deadline, OutOfTime, StudyRequest
from prologue.studies.reproduce.scales import plain_config, run_config
from prologue.training.loop import Stopped
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import TrainRequest, train
from prologue.utils.serialization import save_json


class Worker:
    """Trains and measures pieces."""

    def __init__(self, request: StudyRequest, bench: Bench, deadline: Deadline, progress: Progress) -> None:
        self.request, self.bench, self.deadline, self.progress = request, bench, deadline, progress
        self.out, self.scale = request.out, request.scale
        self._measuring_since = 0.0

    def do(self, piece: Piece) -> None:
        """Train and measure a piece, and write its result. Finished parts are skipped."""
        self.deadline.check()
        self.progress.say(f"variant {piece.variant}, seed {piece.seed}")
        given = None if piece.starts_from is None else self._models_of(piece.starts_from)
        folder = piece.run_folder(self.out)
        run = self._train(run_config(self.scale, piece.variant, piece.seed), folder, given)
        plain = None
        if piece.variant == "prologue":
            plain = self._train(plain_config(self.scale, piece.seed), piece.plain_folder(self.out), folder)
        baseline_run = plain.path if plain is not None else given
        pipeline = Pipeline.from_pretrained(folder, self.request.device, "fp32")
        baseline = None
        if baseline_run is not None:
            baseline = Prior.from_pretrained(baseline_run / "prior").to(pipeline.device)
        models = Models(pipeline.tokenizer, pipeline.prior, piece.seed, model_hashes(folder), piece.name)
        store = Store(folder / "measures", read_ledger(folder / "measures.json", KINDS))
        with self.deadline.listening():
            records = measure(models, self.bench, store, baseline=baseline, watch=self._watch, before=self._before)
        result: Result = {
            "format": RESULT_FORMAT,
            "variant": piece.variant,
            "seed": piece.seed,
            "scale": self.request.scale_name,
            "data": self.request.data,
            "images": images_seen(self.scale, piece),
            "flops": stage_flops(self.scale, piece),
            "parameters": _parameters(models),
            "precision": run.config.precision,
            "weights": models.weights,
            # None for the prior of stage 1, and where the last prior is kept in any case.
            "prior_kept_step": run.record["stages"].get("prior", {}).get("kept_step"),
            "prior_steps": run.config.prior_training.steps,
            "seconds": _seconds(run, plain, records),
            "measures": records,
            "provenance": dict(self.request.provenance),
        }
        save_json(piece.result_file(self.out), result)

    def _models_of(self, piece: Piece) -> Path:
        """The finished run of a piece that another piece starts from.

        A study that was copied without its runs is trained again. Its result is measured again if the weights differ.
        """
        folder = piece.run_folder(self.out)
        self._train(run_config(self.scale, piece.variant, piece.seed), folder, None)
        known = load_results(self.out).get(piece)
        if known is not None and known["weights"] != model_hashes(folder):
            self.progress.say(f"{piece.name} has other weights now, and is measured again")
            self.do(piece)
        return folder

    def _train(self, config: RunConfig, folder: Path, given: Path | None) -> RunFolder:
        data = dataclasses.replace(config.data, file_rule=self.bench.data.file_rule)
        config = dataclasses.replace(config, precision=self.bench.precision, data=data)
        request = TrainRequest(config, self.request.data, folder, tokenizer_from=given, device=self.request.device)
        return train(request, self.progress, self.deadline, self.bench.data)

    def _before(self, name: str) -> None:
        """Raise `OutOfTime` if the measurement is expected to take longer than the time left."""
        self._measuring_since = time.monotonic()
        records = [result["measures"].get(name) for result in load_results(self.out).values()]
        self.deadline.check(self._within([record.get("seconds", 0.0) for record in records if record is not None]))

    def _watch(self, steps: Sequence[int], what: str) -> Iterator[int]:
        """Show the steps of a measurement. It ends between two steps on a signal or at the deadline."""
        self.progress.begin(what, 0, len(steps), 1)
        try:
            for number, step in enumerate(steps):
                reason = self.deadline.asked()
                # A measurement that took half of this call may not fit into the next call either.
                if reason == OVERTIME and time.monotonic() - self._measuring_since < self._half_a_call:
                    raise OutOfTime
                if reason not in (None, OVERTIME):
                    raise Stopped(f"while measuring ({what})", reason)
                yield step
                self.progress.advance(number + 1)
        finally:
            self.progress.end()

    def _within(self, seconds: Sequence[float]) -> float:
        """The largest of these durations, or 0 if it is more than half of a call: such a measurement begins anyway."""
        expected = max(seconds, default=0.0)
        return expected if expected < self._half_a_call else 0.0

    @property
    def _half_a_call(self) -> float:
        """Seconds."""
        return 30 * (self.request.minutes or 0.0)


def _seconds(run: RunFolder, plain: RunFolder | None, records: Mapping[str, Record | None]) -> dict[str, float]:
    """Wall time of the training stages and of all measurements, over all calls."""
    config = run.config
    out = {
        "tokenizer": stage_seconds(run.metrics("tokenizer"), config.tokenizer_training.batch),
        "prior": stage_seconds(run.metrics("prior"), config.prior_training.batch),
        "plain": 0.0 if plain is None else stage_seconds(plain.metrics("prior"), config.prior_training.batch),
        "measuring": sum(float(record["seconds"]) for record in records.values() if record is not None),
    }
    return {name: round(value, 2) for name, value in out.items()}


def stage_seconds(records: Sequence[Mapping[str, Any]], batch: int) -> float:
    """The duration of a stage from its logged rates. Each record has the rate of the steps since the last one."""
    total, before = 0.0, 0
    for record in records:
        total += (record["step"] - before) * batch / record["images_per_second"]
        before = record["step"]
    return total


def _parameters(models: Models) -> dict[str, int]:
    parts = (("tokenizer", models.tokenizer), ("prior", models.prior))
    return {name: sum(tensor.numel() for tensor in model.parameters()) for name, model in parts}
