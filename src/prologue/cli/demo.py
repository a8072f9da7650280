"""`prologue demo`: train, sample, measure and report on the embedded shapes within a time budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from prologue.cli._options import check_run_seed, parse
from prologue.errors import ConfigError
from prologue.utils.measurements import export_measurement, provenance
from prologue.utils.options import DeviceOption, JsonOption, SeedOption

DEFAULT_MINUTES = 10.0
QUICK_MINUTES = 1.5


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    minutes: float | None = None
    """Time budget of everything, in minutes; left out: 10."""
    quick: bool = False
    """A budget of a minute and a half: everything runs, pictures may be poor."""
    compare: bool = False
    """Also train and measure the same without a prologue (2d); the budget covers both."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Run folder. The same command on the same folder continues the demo."""
    seed: SeedOption = 0
    device: DeviceOption = "auto"
    json: JsonOption = None


def run(argv: list[str]) -> int:
    """Run, or continue, the demo."""
    began = time.perf_counter()
    description = "Train a tokenizer and its prior on embedded scenes, draw images, measure them, and write a report."
    options = parse(DemoOptions, argv, "prologue demo", description)
    minutes = _minutes(options)
    check_run_seed(options.seed)
    from prologue.cli._stopping import stops
    from prologue.studies.demo.story import DemoRequest, tell
    from prologue.training.progress import Terminal
    from prologue.utils.allocator import keep_freed_memory

    keep_freed_memory()
    progress = Terminal()
    source = provenance(["demo", *argv])
    request = DemoRequest(minutes, options.compare, options.out, options.seed, options.device, source, began)
    with stops(progress):
        result = tell(request, progress)
    print(*result.lines, sep="\n")
    print(f"report: {result.report}")
    export_measurement(options.json, source, result.records, f"kept in {options.out}")
    return 0


def _minutes(options: DemoOptions) -> float:
    if options.quick and options.minutes is not None:
        raise ConfigError("--quick is a budget of its own: give it or --minutes, not both")
    minutes = QUICK_MINUTES if options.quick else DEFAULT_MINUTES if options.minutes is None else options.minutes
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes must be positive, not {minutes:g}")
    return minutes
