"""`prologue demo`: a planned training of the embedded shapes, then `evaluate` and `report`."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from prologue.cli._options import check_run_seed, parse
from prologue.errors import ConfigError
from prologue.utils.measurements import export_measurement, provenance
from prologue.utils.options import DeviceOption, JsonOption, SeedOption

if TYPE_CHECKING:
    from prologue.evaluation.store import Result
    from prologue.studies.demo.plan import Plan

DEFAULT_MINUTES = 10.0
QUICK_MINUTES = 1.5
REPORT = "report.html"
RECONSTRUCTION_TARGET = 0.9
"""Recognition rate of the worst class in reconstructions."""
SAMPLE_TARGETS = ((10.0, 0.5), (60.0, 0.8))
"""(minutes, part of the samples in which the asked class is recognised)."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    minutes: float | None = None
    """Time budget in minutes for everything. Default: 10."""
    quick: bool = False
    """Use a budget of a minute and a half, as a smoke test."""
    compare: bool = False
    """Also train and evaluate the same model without a prologue (2d). The budget covers both."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Run folder. The same command continues the demo in it."""
    seed: SeedOption = 0
    device: DeviceOption = "auto"
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Begin or continue the demo."""
    began = time.perf_counter()
    description = "Train a tokenizer and its prior on embedded scenes, evaluate them, and write a report."
    options = parse(DemoOptions, argv, "prologue demo", description)
    minutes = _minutes(options)
    check_run_seed(options.seed)
    from prologue.cli import report
    from prologue.cli._stopping import stops
    from prologue.studies.demo import training
    from prologue.training.progress import Terminal
    from prologue.utils.allocator import keep_freed_memory
    from prologue.utils.locks import folder_lock

    keep_freed_memory()
    progress = Terminal()
    request = training.DemoRequest(minutes, options.compare, options.out, options.seed, options.device, began)
    page, records, lines = options.out / REPORT, list[Record](), list[str]()
    with stops(progress), folder_lock(options.out):
        plan, folders = training.train_demo(request, progress)
        for variant, folder in folders.items():
            measured = {}
            for name, record in _evaluations(folder, plan, options, variant == training.OURS):
                progress.say(f"evaluated {folder}: {name}")
                measured[name] = record
            records += [{"name": f"{variant}/{name}", **record} for name, record in measured.items()]
            lines += _summary(measured, "" if variant == training.OURS else f"without a prologue ({variant}), ")
            if variant == training.OURS:
                lines.append(_targets(plan, measured))
        with contextlib.redirect_stdout(io.StringIO()):
            report.run([*map(str, folders.values()), "--out", str(page)])
    print(*lines, f"report: {page}", sep="\n")
    export_measurement(options.json, provenance(["demo", *argv]), records, f"kept in {options.out}")
    return 0


def _minutes(options: DemoOptions) -> float:
    if options.quick and options.minutes is not None:
        raise ConfigError("--quick and --minutes are both budgets: give one of them")
    minutes = QUICK_MINUTES if options.quick else DEFAULT_MINUTES if options.minutes is None else options.minutes
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes must be positive, not {minutes:g}")
    return minutes


def _evaluations(folder: Path, plan: Plan, options: DemoOptions, has_prologue: bool) -> Iterator[tuple[str, Record]]:
    """Evaluate a run. Results that are in its folder are not measured again."""
    from prologue.cli import evaluate
    from prologue.studies.demo.plan import PROLOGUES, RESAMPLED

    seed = str(options.seed)
    common = [str(folder), "--seed", seed, "--device", options.device]

    def measured(kind: str, *flags: str, **fields: Any) -> Record:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate.run([kind, *common, *flags])
        return _newest(folder, kind, fields).record

    features, images = ("--features", "shapes"), ("--count", str(plan.measured_images))
    samples = ("--count", str(plan.samples), *features)
    yield "reconstruction", measured("reconstruction", *images, *features)
    yield "recognition", _recognition(folder, plan, options)
    yield "guided", measured("generation", *samples, guided=True, n=plan.samples)
    yield "unguided", measured("generation", *samples, "--guidance", "none", guided=False, n=plan.samples)
    yield "likelihood", measured("likelihood", *images)
    if has_prologue:
        drawn = ("--count", str(PROLOGUES), "--per", str(RESAMPLED))
        yield "layout", measured("layout", *drawn, *features)


def _newest(folder: Path, kind: str, fields: Mapping[str, Any]) -> Result:
    """The newest stored result of the kind with these fields."""
    from prologue.evaluation.store import Store

    results, _ = Store(folder / "evaluations").all()
    found = [
        each
        for each in results
        if each.record.get("kind") == kind and all(each.record.get(name) == value for name, value in fields.items())
    ]
    return found[-1]


def _recognition(folder: Path, plan: Plan, options: DemoOptions) -> Record:
    """How often the classifier of the embedded shapes recognises the class of reconstructions."""
    import numpy as np

    from prologue.evaluation.recognition import shipped_classifier
    from prologue.evaluation.reconstruction import recognise_reconstructions
    from prologue.evaluation.runs import RunInfo
    from prologue.evaluation.store import Store
    from prologue.evaluation.versions import versions_of
    from prologue.utils.device import pick_device

    info = RunInfo.load(folder)

    def make() -> Record:
        tokenizer = info.source.tokenizer().to(pick_device(options.device))
        opened = info.open_data(None, tokenizer.config.image_size)
        images = opened.data.validation
        classifier = shipped_classifier(opened.source, opened.data.class_names)
        assert classifier is not None, "the demo has embedded images"
        indices = np.arange(min(plan.measured_images, len(images)))
        return recognise_reconstructions(tokenizer, images, indices, classifier, opened.data.class_names)

    inputs = {"weights": info.weights, "images": plan.measured_images, "versions": versions_of("reconstruction")}
    origin = provenance(["demo", "--out", str(folder)], run=str(folder), weights=info.weights)
    return Store(folder / "evaluations").get("recognition", inputs, make, provenance=origin).record


def _summary(measured: Mapping[str, Record], of: str) -> Iterator[str]:
    """Two lines of results of a run."""
    seen, samples = measured["recognition"], measured["guided"]["recognition"]
    yield (
        f"{of}reconstructions: PSNR {measured['reconstruction']['psnr']:.1f} dB, class recognised in "
        f"{100 * seen['rate']:.0f} % of {seen['n']}"
    )
    yield f"{of}samples: asked class recognised in {100 * samples['rate']:.0f} % of {samples['n']}"


def _targets(plan: Plan, measured: Mapping[str, Record]) -> str:
    """How many targets are met: of a budget of 10 minutes, and for longer budgets also of 60 minutes."""
    worst = min(each["rate"] for each in measured["recognition"]["by_class"])
    met = [worst >= RECONSTRUCTION_TARGET]
    for minutes, wanted in SAMPLE_TARGETS:
        if minutes <= max(plan.minutes, DEFAULT_MINUTES):
            met.append(measured["guided"]["recognition"]["rate"] >= wanted)
    line = f"targets met: {sum(met)} of {len(met)}"
    if plan.minutes < DEFAULT_MINUTES:
        line += f" (set for {DEFAULT_MINUTES:g} minutes, this run had {plan.minutes:g})"
    return line
