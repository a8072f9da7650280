"""The training runs of a demo: planned once, then continued by the same request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prologue import builtin
from prologue.config import RunConfig, Variant
from prologue.data.pictures import labelled_grid, save_png
from prologue.errors import RunError
from prologue.pipeline import Pipeline
from prologue.sampling.manifest import Manifest
from prologue.studies.demo.calibrate import calibrate
from prologue.studies.demo.plan import Plan, make_plan
from prologue.studies.demo.recipe import RECIPE, demo_config
from prologue.training.progress import Progress
from prologue.training.run import OPENING, RunFolder, is_vacant
from prologue.training.train import TrainRequest, train
from prologue.utils.serialization import to_dict

DATA = "shapes"
OURS: Variant = "prologue"
BASELINE: Variant = "2d"
BASELINE_FOLDER = "compare-2d"
_OPENING_ROWS = 4


@dataclass(frozen=True)
class DemoRequest:
    """The options of `prologue demo`."""

    minutes: float
    compare: bool
    out: Path
    seed: int
    device: str
    began: float
    """`time.perf_counter()` at the start of the command, from which the budget counts."""


def train_demo(request: DemoRequest, progress: Progress) -> tuple[Plan, dict[Variant, Path]]:
    """Plan and train the runs of a demo, or continue them. Returns the plan and the run folders.

    Raises `Stopped` on a signal, and `RunError` if the folder has other content or a demo with other settings.
    """
    stored = _stored_plan(request)
    facts = to_dict(_new_plan(request, progress)) if stored is None else stored
    plan = Plan.from_dict(facts)
    folders = {OURS: request.out}
    if plan.compare:
        folders[BASELINE] = request.out / BASELINE_FOLDER
    for variant, folder in folders.items():
        config = _config(request, plan, variant, folder)
        train(TrainRequest(config, DATA, folder, device=request.device, facts={"demo": facts}), progress)
        manifest = Manifest.load(folder)
        if manifest.recipe is None:
            manifest.replace(recipe=RECIPE).save(folder)
    return plan, folders


def _stored_plan(request: DemoRequest) -> Mapping[str, Any] | None:
    """The stored plan of the demo in the folder, or None for a new demo."""
    if not (request.out / "run.json").is_file():
        return None
    run = RunFolder.load(request.out)
    stored: dict[str, Any] | None = run.record["facts"].get("demo")
    if stored is None:
        raise RunError(f"{request.out} is a run that `prologue demo` did not begin: choose another --out")
    plan = Plan.from_dict(stored)
    settings = (
        ("minutes", plan.minutes, request.minutes),
        ("compare", plan.compare, request.compare),
        ("seed", run.config.seed, request.seed),
    )
    changed = [f"{name}: {there} in the run, {now} now" for name, there, now in settings if there != now]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(
            f"{request.out} holds a demo with other settings:\n  {listed}\n"
            "Repeat its settings to continue it, choose another --out, or delete the folder"
        )
    return stored


def _config(request: DemoRequest, plan: Plan, variant: Variant, folder: Path) -> RunConfig:
    """The configuration of the run in the folder, or a new one."""
    if (folder / "run.json").is_file():
        return RunFolder.load(folder).config
    return demo_config(plan.tokenizer_steps, plan.prior_steps, plan.minutes, variant=variant, seed=request.seed)


def _new_plan(request: DemoRequest, progress: Progress) -> Plan:
    if not is_vacant(request.out):
        raise RunError(f"{request.out} exists and is not a demo: choose another --out, or empty it")
    _write_opening(request.out / OPENING)
    progress.say(f"samples of {builtin.DEFAULT} in the package, which took hours to train: {request.out / OPENING}")
    progress.say("measuring the speed of this machine")
    variants = [OURS, BASELINE] if request.compare else [OURS]
    timings = {name: calibrate(name, request.minutes, request.device, len(variants)) for name in variants}
    plan = make_plan(timings, request.minutes, time.perf_counter() - request.began)
    progress.say(
        f"planned for {request.minutes:g} minutes: {plan.tokenizer_steps} tokenizer steps, "
        f"{plan.prior_steps} prior steps"
    )
    return plan


def _write_opening(path: Path) -> None:
    """Samples of the builtin model, with a column per class, to look at during the training."""
    pipeline = Pipeline.from_pretrained(builtin.DEFAULT, "cpu", compile=False)
    names = pipeline.class_names
    images = pipeline.generate(count=_OPENING_ROWS * len(names), seed=0).images
    rows = [images[start : start + len(names)] for start in range(0, len(images), len(names))]
    save_png(path, labelled_grid(rows, names))
