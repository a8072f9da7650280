"""The one training loop: steps, logging, checkpoints, stopping and continuing; stages provide the rest."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from prologue.training.progress import Progress
from prologue.training.run import RunFolder

Metrics = dict[str, Tensor | float]


class Stage(Protocol):
    """A trainable stage: its steps are a function of their number and of the state."""

    name: str
    steps: int
    batch: int

    def step(self, step: int) -> Metrics:
        """Do step `step` and return its metrics, left on the device."""

    def summary(self, step: int) -> tuple[Metrics, list[str]]:
        """Metrics over the steps since the last call, and sentences that the user should read."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""

    def snapshot(self, step: int) -> None:
        """Write pictures of the current state."""

    def finish(self) -> None:
        """Write the stage's result into the run."""


class Stopped(Exception):
    """Training stopped on request, after a checkpoint. `signal` is the signal's number."""

    def __init__(self, stage: str, step: int, number: int) -> None:
        super().__init__(f"stopped in stage {stage} after step {step}")
        self.signal = number


class StopRequest:
    """Set by SIGINT and SIGTERM; a second signal stops at once.

    `agree` makes all processes of a group stop after the same step: it takes this process's signal number (0 for
    none) and returns the largest of the group.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self.number: int | None = None
        self.agree = agree

    def asked(self) -> int | None:
        """The signal that asks to stop, if any; called by every process after every step."""
        if self.agree is None:
            return self.number
        return self.agree(self.number or 0) or None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block. Outside the main thread signals cannot be handled, and are not."""
        previous: dict[int, Any] = {}

        def handle(number: int, frame: FrameType | None) -> None:
            if self.number is not None:
                raise KeyboardInterrupt
            self.number = number

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
    run: RunFolder,
    progress: Progress,
    stop: StopRequest,
    main: bool = True,
    track: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train `stage` from its newest good checkpoint to its end, then let it write its result.

    `main` is true in the process that writes. Raises `Stopped` on a stop signal, after a checkpoint.
    """
    config, checkpoints = run.config, run.checkpoints(stage.name)
    restored = checkpoints.restore(progress.say)
    start = 0
    if restored is not None:
        start, state = restored
        stage.load_state(state)
        progress.say(f"{stage.name}: continuing at step {start} of {stage.steps}")
    if main:
        run.forget_metrics(stage.name, start)
        run.set_stage(stage.name, steps=stage.steps, finished=False)
    progress.begin(stage.name, start, stage.steps, stage.batch)
    clock, since, saved = time.perf_counter(), start, start
    for step in range(start, stage.steps):
        metrics = stage.step(step)
        done = step + 1
        if done % config.log_every == 0 or done == stage.steps:
            summary, sentences = stage.summary(step)
            now = time.perf_counter()
            record = _record(stage, step, {**metrics, **summary}, (done - since) * stage.batch / (now - clock))
            clock, since = now, done
            for sentence in sentences:
                progress.say(sentence)
            if main:
                run.log(record)
                if track is not None:
                    track(record)
            progress.show(done, record)
        else:
            progress.advance(done)
        if main and config.sample_every and (done % config.sample_every == 0 or done == stage.steps):
            stage.snapshot(done)
        asked = stop.asked()
        if asked is not None or done % config.checkpoint_every == 0:
            if main:
                checkpoints.save(done, stage.state())
            saved = done
        if asked is not None and done < stage.steps:
            progress.end()
            raise Stopped(stage.name, done, asked)
    if main:
        if saved < stage.steps:
            checkpoints.save(stage.steps, stage.state())
        stage.finish()
        run.set_stage(stage.name, finished=True)
        checkpoints.clear()
    progress.end()


def _record(stage: Stage, step: int, metrics: Metrics, rate: float) -> dict[str, Any]:
    values = {key: float(value) for key, value in metrics.items()}
    rounded = {key: float(f"{value:.6g}") for key, value in values.items()}
    return {"stage": stage.name, "step": step + 1, **rounded, "images_per_second": float(f"{rate:.4g}")}


def frozen_call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call `module` without gradients for its parameters, and without its wrapper: only its inputs get one."""
    parameters = {key: value.detach() for key, value in module.named_parameters()}
    return torch.func.functional_call(module, parameters, args, kwargs)
