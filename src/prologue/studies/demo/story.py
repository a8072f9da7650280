"""The demo from its plan to its report; every part is skipped where an earlier call has done it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from prologue import builtin
from prologue.config import RunConfig, Variant
from prologue.data.order import center_batch
from prologue.data.pictures import save_png, to_pil
from prologue.data.source import open_data
from prologue.errors import RunError
from prologue.evaluation.runs import Record
from prologue.pipeline import Pipeline
from prologue.report.page import PICTURES
from prologue.sampling.recipe import Recipe
from prologue.studies.demo import verdict
from prologue.studies.demo.calibrate import calibrate
from prologue.studies.demo.ledger import Ledger
from prologue.studies.demo.measure import Subject, measure
from prologue.studies.demo.pictures import opening_grid, reconstruction_grid, resample_grid, sample_grid
from prologue.studies.demo.plan import Plan, make_plan
from prologue.studies.demo.recipe import demo_config
from prologue.studies.demo.sections import Resampled, Told, demo_report
from prologue.training.progress import Progress
from prologue.training.run import OPENING, RunFolder, is_vacant
from prologue.training.train import TrainRequest, train
from prologue.utils.locks import folder_lock
from prologue.utils.serialization import to_dict

DATA = "shapes"
OURS: Variant = "prologue"
BASELINE: Variant = "2d"
BASELINE_FOLDER = "compare-2d"
REPORT = "report.html"
MEASURES = "measures.json"


@dataclass(frozen=True)
class DemoRequest:
    """What `prologue demo` is asked for."""

    minutes: float
    compare: bool
    out: Path
    seed: int
    device: str
    provenance: Mapping[str, Any]
    began: float
    """`time.perf_counter()` at the start of the command: the budget counts from there."""


@dataclass(frozen=True)
class DemoResult:
    """Where the report is, what it says in short, and its figures."""

    report: Path
    lines: tuple[str, ...]
    records: list[Record]


def tell(request: DemoRequest, progress: Progress) -> DemoResult:
    """Plan, train, measure and report; continue where an earlier call of the same request stopped.

    Raises `Stopped` on a signal while training, and `RunError` where the folder holds something else.
    """
    with folder_lock(request.out):
        return _tell(request, progress)


def _tell(request: DemoRequest, progress: Progress) -> DemoResult:
    stored = stored_plan(request)
    plan, configs = stored if stored is not None else _new_plan(request, progress)
    ledger = Ledger(request.out / MEASURES, request.provenance)
    folders = {OURS: request.out}
    if plan.compare:
        folders[BASELINE] = request.out / BASELINE_FOLDER
    runs = {}
    for name, folder in folders.items():
        stopwatch = Stopwatch(progress, partial(_keep_time, ledger, name))
        facts = {"demo": to_dict(plan)}
        runs[name] = train(TrainRequest(configs[name], DATA, folder, device=request.device, facts=facts), stopwatch)
    return _report(request, plan, runs, ledger, progress, whole=stored is None)


def stored_plan(request: DemoRequest) -> tuple[Plan, dict[Variant, RunConfig]] | None:
    """The plan of the demo in the folder and the configurations it was begun with; None for a fresh one.

    Another kind of run, or a demo with other settings, is a `RunError` that names the difference.
    """
    if not (request.out / "run.json").is_file():
        return None
    run = RunFolder.load(request.out)
    stored = run.record["facts"].get("demo")
    if stored is None:
        raise RunError(f"{request.out} is a run that `prologue demo` did not begin: choose another --out")
    plan = Plan.from_dict(stored)
    differences = [
        f"{name}: {there} in the run, {now} now"
        for name, there, now in (
            ("minutes", plan.minutes, request.minutes),
            ("compare", plan.compare, request.compare),
            ("seed", run.config.seed, request.seed),
        )
        if there != now
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise RunError(
            f"{request.out} holds a demo with other settings:\n  {listed}\n"
            "Repeat its settings to continue it, choose another --out, or delete the folder"
        )
    configs = {OURS: run.config}
    if plan.compare:
        other = request.out / BASELINE_FOLDER
        begun = (other / "run.json").is_file()
        configs[BASELINE] = RunFolder.load(other).config if begun else _config(request, plan, BASELINE)
    return plan, configs


def _new_plan(request: DemoRequest, progress: Progress) -> tuple[Plan, dict[Variant, RunConfig]]:
    if not is_vacant(request.out):
        raise RunError(f"{request.out} exists and is not a demo: choose another --out, or empty it")
    _show_opening(request.out, progress)
    progress.say("calibrating: how fast is this machine?")
    variants = [OURS, BASELINE] if request.compare else [OURS]
    timings = {name: calibrate(name, request.minutes, request.device, len(variants)) for name in variants}
    plan = make_plan(timings, request.minutes, time.perf_counter() - request.began)
    progress.say(
        f"planned for {request.minutes:g} minutes: {plan.tokenizer_steps} tokenizer steps, "
        f"{plan.prior_steps} prior steps"
    )
    return plan, {name: _config(request, plan, name) for name in variants}


def _show_opening(out: Path, progress: Progress) -> None:
    """Something to look at while the demo trains."""
    save_png(out / OPENING, opening_grid())
    progress.say(f"this is what a few hours buy: {out / OPENING}, samples of {builtin.DEFAULT} in the package")


def _config(request: DemoRequest, plan: Plan, variant: Variant) -> RunConfig:
    return demo_config(plan.tokenizer_steps, plan.prior_steps, plan.minutes, variant=variant, seed=request.seed)


def _report(
    request: DemoRequest,
    plan: Plan,
    runs: Mapping[Variant, RunFolder],
    ledger: Ledger,
    progress: Progress,
    whole: bool,
) -> DemoResult:
    """Measure, draw and write. `whole` says that this call has done everything since the plan."""
    told: dict[str, Told] = {}
    resampled = None
    for name, run in runs.items():
        config = run.config
        pipeline = Pipeline.from_pretrained(run.path, request.device, "fp32")
        subject = Subject(name, run, pipeline, open_data(DATA, config.data, config.tokenizer.image_size))
        measures = measure(subject, plan.sizes, ledger, progress)
        begin = time.perf_counter()
        progress.say("drawing the pictures of the report")
        recipes = {kind: Recipe.from_dict(measures["choice"][kind]) for kind in ("chosen", "guided", "unguided")}
        guided, images = sample_grid(pipeline, recipes["guided"], plan.sizes.shown_rows, config.seed)
        unguided, plain = sample_grid(pipeline, recipes["unguided"], plan.sizes.shown_rows, config.seed)
        if name == "prologue":
            fresh = images if recipes["chosen"] == recipes["guided"] else plain
            grid, record = resample_grid(pipeline, subject.data, plan.sizes.resamples, config.seed, fresh)
            ledger.put("prologue/resampling", record)
            resampled = Resampled(grid, record)
            originals = to_pil(center_batch(subject.data.validation, range(2)).images)
        told[name] = Told(
            config, measures, run.metrics(), reconstruction_grid(pipeline, subject.data), guided, unguided,
            _seconds(run, ledger, name) | {"pictures": time.perf_counter() - begin},
        )  # fmt: skip
    assert resampled is not None
    # Of a demo that was continued only the parts are known, not the time between them.
    parts = plan.seconds["calibration"] + sum(sum(each.seconds.values()) for each in told.values())
    minutes = (time.perf_counter() - request.began if whole else parts) / 60
    footer = "Made by " + ", ".join(f"{key} {value}" for key, value in request.provenance.items())
    path = request.out / REPORT
    opening = request.out / OPENING
    shown = Image.open(opening) if opening.is_file() else None
    demo_report(request.out, plan, told, resampled, minutes, footer, shown).write(path)
    save_png(request.out / PICTURES / "original.png", originals[0])
    return DemoResult(path, summary(plan, told["prologue"]), list(ledger.records.values()))


def summary(plan: Plan, told: Told) -> tuple[str, ...]:
    """Three lines of results."""
    samples, parts = verdict.chosen(told.measures)["recognition"], told.measures["recognition"]
    reached = verdict.targets(plan, told.measures)
    return (
        f"reconstructions: PSNR {told.measures['reconstruction']['psnr']:.1f} dB, class recognised in "
        f"{verdict.percent(parts)} of {parts['n']}",
        f"samples: asked class recognised in {verdict.percent(samples)} of {samples['n']} "
        f"({verdict.recipe_text(told.measures['choice']['chosen'])})",
        f"targets met: {sum(each.met for each in reached)} of {len(reached)}"
        + (f" (set for 10 minutes, this run had {plan.minutes:g})" if plan.minutes < 10 else ""),
    )


def _seconds(run: RunFolder, ledger: Ledger, name: str) -> dict[str, float]:
    """What the parts of a run took, across all the calls that it was continued by."""
    seconds = {}
    for stage, batch in (
        ("tokenizer", run.config.tokenizer_training.batch),
        ("prior", run.config.prior_training.batch),
    ):
        seconds[stage] = stage_seconds(run.metrics(stage), batch)
    parts = {"tokens": ["tokens"], "choice": ["choice"]}
    parts["evaluation"] = ["guided", "unguided", "reconstruction", "recognition", "likelihood"]
    for part, names in parts.items():
        records = [ledger.records.get(f"{name}/{each}", {}) for each in names]
        seconds[part] = sum(float(record.get("seconds", 0.0)) for record in records)
    return seconds


def _keep_time(ledger: Ledger, run: str, stage: str, seconds: float) -> None:
    """Keep the time of the one stage whose metrics do not tell it."""
    if stage == "tokens":
        ledger.put(f"{run}/tokens", {"kind": "tokens", "seconds": round(seconds, 2)})


def stage_seconds(records: list[dict[str, Any]], batch: int) -> float:
    """A stage's time from its logged rates: each record's is that of the steps since the one before."""
    total, before = 0.0, 0
    for record in records:
        total += (record["step"] - before) * batch / record["images_per_second"]
        before = record["step"]
    return total


@dataclass
class Stopwatch:
    """Passes everything on, and tells how long each stage took when it ends."""

    inner: Progress
    ended: Callable[[str, float], None]
    _name: str = ""
    _began: float = 0.0

    def say(self, sentence: str) -> None:
        self.inner.say(sentence)

    def begin(self, name: str, start: int, total: int, batch: int) -> None:
        self._name, self._began = name, time.perf_counter()
        self.inner.begin(name, start, total, batch)

    def advance(self, done: int) -> None:
        self.inner.advance(done)

    def show(self, done: int, record: dict[str, Any]) -> None:
        self.inner.show(done, record)

    def end(self) -> None:
        self.inner.end()
        self.ended(self._name, time.perf_counter() - self._began)
