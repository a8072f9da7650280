"""The training loop of both stages: steps, logging, checkpoints, stop and resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from prologue.errors import TrainingError
from prologue.training.context import Context
from prologue.training.learner import Learner
from prologue.training.progress import Progress
from prologue.training.schedule import learning_rate
from prologue.training.skipping import Skipping
from prologue.utils.cpu_threads import cpu_threads

Metrics = dict[str, Tensor | float]


class Stage(Protocol):
    """A stage that the loop trains. A step depends only on its number and the state."""

    name: str
    steps: int
    batch: int
    product: tuple[int, int]
    """Size of a typical matrix product, for the number of threads: tokens of a microbatch, and network width."""

    @property
    def learners(self) -> Mapping[str, Learner]:
        """The trained networks by the section of their settings, such as `prior_training.optimizer`."""

    def step(self, step: int) -> Metrics:
        """Do step `step` and return its metrics as tensors on the device. Nothing in a step waits for the device."""

    def summary(self, step: int) -> tuple[Metrics, list[str]]:
        """Metrics of the steps since the last call, and warnings for the user."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""

    def warm_start(self, step: int) -> None:
        """Continue after `step` steps from the finished weights alone."""

    def snapshot(self, step: int) -> Metrics:
        """Save pictures, and return metrics that are too slow for every log record. This does not change the state."""

    def finish(self) -> None:
        """Write the result of the stage into the run."""


class Stopped(Exception):
    """A signal stopped the work; the finished part is saved. `signal` is the number of the signal."""

    def __init__(self, where: str, number: int) -> None:
        super().__init__(f"stopped {where}")
        self.signal = number


SAME_REQUEST_SECONDS = 1.0
"""A second signal within this time is the same request, because launchers and schedulers forward the terminal's
signal."""


class StopRequest:
    """Set by SIGINT and SIGTERM; a second signal after `SAME_REQUEST_SECONDS` raises KeyboardInterrupt.

    `agree` makes all processes of a group stop after the same step: it maps the signal number of this process (0 for
    none) to the largest number of the group.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self.number: int | None = None
        self.agree = agree

    def asked(self) -> int | None:
        """The signal of any process, or None. Every process calls this after every step."""
        alone = self.alone()
        return alone if self.agree is None else self.agree(alone or 0) or None

    def alone(self) -> int | None:
        """The signal of this process, or None: for work of one process while the others wait."""
        return self.number

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle signals inside the block. Outside the main thread Python cannot handle them, and nothing changes."""
        previous: dict[int, Any] = {}
        first: float | None = None

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal first
            now = time.monotonic()
            if first is not None and now - first > SAME_REQUEST_SECONDS:
                raise KeyboardInterrupt
            first = now if first is None else first
            self.number = number if self.number is None else self.number

        try:
            for kind in (signal.SIGINT, signal.SIGTERM):
                previous[kind] = signal.signal(kind, handle)
        except ValueError:
            previous.clear()
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run_stage(
    stage: Stage,
    context: Context,
    progress: Progress,
    stop: StopRequest,
    track: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train `stage` from its newest good checkpoint to its last step, then write its result.

    Every process of a group calls this; the main process writes.

    Raises:
        Stopped: on a signal, after a checkpoint.
        TrainingError: too many updates in a row were skipped.
    """
    run, main = context.run, context.main
    checkpoints = run.checkpoints(stage.name)
    restored = checkpoints.restore(progress.say)
    start = 0
    if restored is not None:
        start, state = restored
        stage.load_state(state)
        progress.say(f"{stage.name}: continuing at step {start} of {stage.steps}")
    elif start := int(run.record["stages"].get(stage.name, {}).get("warm_start", 0)):
        stage.warm_start(start)
        progress.say(
            f"{stage.name}: its last checkpoint is lost, so it continues from the finished weights at step {start} of "
            f"{stage.steps}, with new optimizer moments"
        )
    if start and run.changed(stage.name):
        rates = (learning_rate(learner.config, learner.updates, learner.total) for learner in stage.learners.values())
        shown = ", ".join(f"{rate:.3g} ({section})" for section, rate in zip(stage.learners, rates, strict=True))
        progress.say(f"{stage.name}: settings have changed; the learning rate is now {shown}")
    threads = context.threads(stage.name, *stage.product)
    if main:
        run.forget_metrics(stage.name, start)
        run.set_stage(stage.name, steps=stage.steps, finished=False, failed=False, threads=threads)
    skipping = Skipping(stage.name, stage.learners, run.config.stop_after_skipped)
    progress.begin(stage.name, start, stage.steps, stage.batch)
    try:
        saved = _steps(stage, context, progress, stop, track, start, skipping, threads)
    finally:
        progress.end()
    if main:
        if saved < stage.steps:
            checkpoints.save(stage.steps, stage.state(), skipping.failing)
        stage.finish()
        run.set_stage(stage.name, finished=True, skipped=skipping.total, warm_start=0)
        checkpoints.keep_last()


def _steps(
    stage: Stage,
    context: Context,
    progress: Progress,
    stop: StopRequest,
    track: Callable[[dict[str, Any]], None] | None,
    start: int,
    skipping: Skipping,
    threads: int,
) -> int:
    """Do all steps from `start` on. Returns the step of the last checkpoint."""
    config, checkpoints = context.run.config, context.run.checkpoints(stage.name)
    saved, since, clock = start, start, time.perf_counter()
    for step in range(start, stage.steps):
        with cpu_threads(threads):
            metrics = stage.step(step)
        done = step + 1
        last = done == stage.steps
        pictured = bool(config.sample_every) and (done % config.sample_every == 0 or last)
        if pictured or done % config.log_every == 0 or last:
            figures = {
                key: float(value) for key, value in metrics.items()
            }  # waits for the device before the clock is read
            rate = (done - since) * stage.batch / max(time.perf_counter() - clock, 1e-9)
            with cpu_threads(threads):
                taken = stage.snapshot(done) if pictured and context.main else {}
                summary, sentences = stage.summary(step)
            skipping.read()
            record = _record(stage, done, {**context.mean({**figures, **summary, **skipping.metrics()}), **taken}, rate)
            for sentence in (*sentences, *skipping.sentences(done)):
                progress.say(sentence)
            if context.main:
                context.run.log(record)
                if track is not None:
                    track(record)
            progress.show(done, record)
            since, clock = done, time.perf_counter()
        else:
            progress.advance(done)
        asked = stop.asked()
        saving = asked is not None or done % config.checkpoint_every == 0
        if saving:
            skipping.read()
        if skipping.limit_reached:
            raise _too_many_skips(stage, context, skipping, done, start)
        if saving:
            if context.main:
                checkpoints.save(done, stage.state(), skipping.failing)
            saved = done
        if asked is not None and not last:
            raise Stopped(f"in stage {stage.name} after step {done}", asked)
    return saved


def _too_many_skips(stage: Stage, context: Context, skipping: Skipping, done: int, start: int) -> TrainingError:
    """Remove the checkpoints since the last update that was not skipped, and return the error.

    If all updates since the first checkpoint of this call were skipped, that one is removed too.
    """
    checkpoints = context.run.checkpoints(stage.name)
    useless = start if skipping.in_a_row >= done - start else done
    good = checkpoints.good(useless)
    if context.main:
        checkpoints.drop_failing(useless)
        context.run.set_stage(stage.name, skipped=skipping.total, failed=True)
    return skipping.error(done, max(good, default=0))


def _record(stage: Stage, done: int, metrics: Metrics, rate: float) -> dict[str, Any]:
    rounded = {key: float(f"{float(value):.6g}") for key, value in metrics.items()}
    return {"stage": stage.name, "step": done, **rounded, "images_per_second": float(f"{rate:.4g}")}


def frozen_call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call `module`, without the wrapper of a process group, so that only its inputs get a gradient.

    Running statistics do not change either.
    """
    tensors = {key: value.detach() for key, value in module.named_parameters()}
    tensors |= {key: value.clone() for key, value in module.named_buffers()}
    return torch.func.functional_call(module, tensors, args, kwargs)
