"""Progress of training: a live line in a terminal, otherwise plain lines at intervals."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_SECONDS = 10.0
SHOWN = (
    "l1", "l2", "perceptual", "gan_generator", "ce_prologue", "ce_visual", "loss", "visual_usage", "prologue_usage",
)  # fmt: skip


class Progress:
    """Receives the progress of a loop. This class shows nothing; subclasses override what they show."""

    def say(self, sentence: str) -> None:
        """Show a sentence permanently."""

    def begin(self, name: str, start: int, total: int, batch: int) -> None:
        """A stage of `total` steps of `batch` images starts after `start` steps."""

    def advance(self, done: int) -> None:
        """`done` steps of the stage are done."""

    def show(self, done: int, record: dict[str, Any]) -> None:
        """The same, with a log record."""

    def end(self) -> None:
        """The stage has ended."""


def describe(record: dict[str, Any]) -> str:
    """The most important metrics of a log record, in one line."""
    parts = [f"{name} {record[name]:.3g}" for name in SHOWN if record.get(name)]
    return "  ".join([*parts, f"{record['images_per_second']:.0f} images/s"])


class Terminal(Progress):
    """A progress bar if standard error is a terminal, otherwise a line every `PLAIN_SECONDS`.

    With a `prefix`, it writes lines that begin with the prefix. This separates several processes on one terminal.
    """

    def __init__(self, prefix: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True, highlight=False)
        self.prefix = prefix
        self.live = self.console.is_terminal and not prefix
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.name, self.total, self.started, self.printed, self.start, self.figures = "", 0, 0.0, 0.0, 0, ""

    def say(self, sentence: str) -> None:
        if self.live:
            self.console.print(sentence, markup=False)
        else:
            print(f"{self.prefix}{sentence}", file=sys.stderr, flush=True)

    def begin(self, name: str, start: int, total: int, batch: int) -> None:
        self.name, self.start, self.total = name, start, total
        self.started, self.figures = time.monotonic(), ""
        self.printed = self.started
        if self.live:
            for task in list(self.bar.task_ids):
                self.bar.remove_task(task)
            self.bar.add_task(name, total=total, completed=start, metrics="")
            self.bar.start()

    def advance(self, done: int) -> None:
        if self.live:
            self.bar.update(self.bar.task_ids[0], completed=done)
        else:
            self._line(done)

    def show(self, done: int, record: dict[str, Any]) -> None:
        if self.live:
            self.bar.update(self.bar.task_ids[0], completed=done, metrics=describe(record))
        else:
            self.figures = f"  {describe(record)}"
            self._line(done)

    def _line(self, done: int) -> None:
        now = time.monotonic()
        if now - self.printed < PLAIN_SECONDS and done < self.total:
            return
        self.printed = now
        left = (now - self.started) / max(1, done - self.start) * (self.total - done)
        self.say(f"{self.name} {done}/{self.total}{self.figures}  {left:.0f} s left")

    def end(self) -> None:
        if self.live:
            self.bar.stop()
