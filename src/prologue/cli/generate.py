"""`prologue generate`: draw images from a trained run; the same command resumes an interrupted one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import Positional, arg

from prologue import builtin
from prologue.bulk.drawing import Drawing, Job, Write
from prologue.bulk.output import Output
from prologue.cli._sampling import SamplingFlags, notes_on_stderr, parse_classes
from prologue.cli.options import parse
from prologue.data.names import counted
from prologue.errors import ConfigError
from prologue.pipeline import Pipeline
from prologue.sampling.arguments import IN_TURN
from prologue.sampling.flags import GUIDANCE_HELP
from prologue.utils.measurements import export_measurement
from prologue.utils.options import LOCATION
from prologue.utils.processes import Processes
from prologue.utils.rng import check_seeds

_DEFAULT_COUNT = 16
_SECONDS_PER_LINE = 30.0
"""Seconds between lines of progress if standard error is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SamplingFlags):
    run: Annotated[Positional[str], arg(metavar="RUN"), LOCATION] = builtin.DEFAULT
    """Folder of a run or an imported model, or builtin:NAME."""
    classes: Annotated[str | None, arg(metavar="A,B,…", help_behavior_hint="(default: all classes)")] = None
    """Class names or ids; `null` is the null class."""
    count: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per named class, else 16)")] = None
    """Total number of images, assigned to the classes in turn."""
    write: Literal["auto", "png", "npz", "both"] = "auto"
    """Files to write; auto is both up to --shard-size images, and npz above."""
    shard_size: int = 5000
    """Images per NPZ archive; more images give several archives."""


def run(argv: list[str]) -> int:
    """Draw images and write them to `--out`. The same call again draws only missing images."""
    options = parse(
        GenerateOptions,
        argv,
        "prologue generate",
        "Draw images from a trained run, or from the model in the package.",
        GUIDANCE_HELP,
    )
    options.check()
    for name in ("count", "shard_size"):
        value: int | None = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    processes = Processes.join(options.device)
    pipeline = options.open(options.run, processes.device)
    job = _job(pipeline, options)
    output = Output(options.out)
    begin = time.perf_counter()
    with notes_on_stderr(), _Shown(processes.main) as shown:
        drawing = Drawing(pipeline, job, output, processes, say=_say, progress=shown)
        drew = drawing.run(options.overwrite)
    if not processes.main:
        return 0
    seconds = time.perf_counter() - begin
    count = len(job.class_ids)
    images = counted(count, "image")
    made = {"png": "PNG files", "npz": "NPZ", "both": "PNG files and NPZ"}[job.write]
    if not drew:
        print(f"{options.out} already holds {'this' if count == 1 else 'these'} {images} ({made})")
    else:
        rate = f"; {shown.rate:.2f} images/s" if shown.rate else ""  # 0 if no image was drawn
        print(f"{images} ({made}) and grid.png are in {options.out}{rate}")
    origin = options.origin(["generate", *argv], options.run, pipeline, seconds)
    export_measurement(options.json, origin, _records(drawing), f"of the images in {options.out}")
    return 0


def _job(pipeline: Pipeline, options: GenerateOptions) -> Job:
    """The images to draw. Raises an error for unknown classes before anything is drawn or written."""
    named = None if options.classes is None else parse_classes(options.classes, pipeline)
    count = options.count
    if count is None and options.classes is None:
        count = _DEFAULT_COUNT
    class_ids = pipeline.deal(IN_TURN if named is None else named, count)
    check_seeds(options.seed, len(class_ids))
    # The classes in turn, with repetitions: `ring,ring,7` gives other images than `ring,7`.
    dealt = list(dict.fromkeys(class_ids)) if named is None else pipeline.deal(named)[: len(class_ids)]
    write: Write = "both" if len(class_ids) <= options.shard_size else "npz"
    if options.write != "auto":
        write = options.write
    request = options.request(
        pipeline,
        classes=[pipeline.class_name(index) for index in dealt],
        count=len(class_ids),
        write=write,
        shard_size=options.shard_size,
    )
    return Job(class_ids, options.seed, options.sampling(), write, options.shard_size, options.batch, request)


def _records(drawing: Drawing) -> Iterator[dict[str, Any]]:
    """One record per image: its file or place in an archive, class and seed."""
    job = drawing.job
    for index, class_id in enumerate(job.class_ids):
        shard, place = drawing.plan.place(index)
        where = {"shard": shard, "index": place} if job.write == "npz" else {"file": drawing.file(index)}
        seed = job.seed + index
        yield {**where, "class": drawing.class_name(index), "class_id": class_id, "seed": seed}


def _say(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr, flush=True)


class _Shown:
    """Progress on standard error: a bar on a terminal, else a line every 30 s."""

    def __init__(self, main: bool) -> None:
        self.rate = 0.0
        self._last = time.perf_counter()
        columns = (TextColumn("images"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
        rest = (TextColumn("{task.fields[rate]:.2f} images/s"), TimeRemainingColumn())
        live = main and sys.stderr.isatty()
        self._bar = Progress(*columns, *rest, console=Console(stderr=True), transient=True) if live else None

    def __enter__(self) -> _Shown:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("images", total=None, rate=0.0)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, rate: float) -> None:
        """Show that `done` of `total` images are drawn, at `rate` images per second."""
        now = time.perf_counter()
        self.rate = rate
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif now - self._last >= _SECONDS_PER_LINE:
            self._last = now
            left = (total - done) / rate if rate else 0.0
            print(f"{done}/{total} images, {rate:.2f} images/s, {left:.0f} s left", file=sys.stderr, flush=True)
