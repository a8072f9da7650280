"""`prologue demo`: a planned training of the embedded shapes, its evaluations and their report."""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from prologue.cli.options import check_run_seed, parse
from prologue.errors import ConfigError
from prologue.utils.measurements import export_measurement, provenance
from prologue.utils.options import DeviceOption, JsonOption, SeedOption

DEFAULT_MINUTES = 10.0
QUICK_MINUTES = 1.5
REPORT = "report.html"


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
    from prologue.studies.demo import evaluation, training
    from prologue.training.progress import Terminal
    from prologue.utils.allocator import keep_freed_memory
    from prologue.utils.locks import folder_lock

    keep_freed_memory()
    progress = Terminal()
    request = training.DemoRequest(minutes, options.compare, options.out, options.seed, options.device, began)
    page, records, lines = options.out / REPORT, list[dict[str, Any]](), list[str]()
    with stops(progress), folder_lock(options.out):
        plan, folders = training.train_demo(request, progress)
        for variant, folder in folders.items():
            ours = variant == training.OURS
            measured = {}
            for name, record in evaluation.evaluations(folder, plan, request):
                progress.say(f"evaluated {folder}: {name}")
                measured[name] = record
            records += [{"name": f"{variant}/{name}", **record} for name, record in measured.items()]
            lines += evaluation.summary(measured, "" if ours else f"without a prologue ({variant}), ")
            if ours:
                lines.append(evaluation.targets(plan, measured))
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
