"""Updates that were skipped because their gradients were not finite: counts, warnings, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prologue.data.names import counted
from prologue.errors import TrainingError
from prologue.training.learner import Learner

WHY = "because their gradients were not finite"


class Skipping:
    """The skipped updates of a stage. `learners` are its networks by the section of their settings."""

    def __init__(self, stage: str, learners: Mapping[str, Learner], limit: int) -> None:
        self.stage, self.learners, self.limit = stage, learners, limit
        self.read()
        self._warned_at = self.total

    def read(self) -> None:
        """Read the counts, which waits for the device.

        `total` counts the skips of all networks; `in_a_row` is the longest current row of skips of one network.
        """
        counts = torch.stack([learner.skips for learner in self.learners.values()]).tolist()
        self.total: int = sum(total for total, _ in counts)
        self.in_a_row: int
        self.in_a_row, self._worst = max(
            (row, section) for (_, row), section in zip(counts, self.learners, strict=True)
        )

    @property
    def failing(self) -> bool:
        """Whether the last update of any network was skipped."""
        return self.in_a_row > 0

    @property
    def limit_reached(self) -> bool:
        """Whether training must stop because `limit` updates in a row were skipped."""
        return bool(self.limit) and self.in_a_row >= self.limit

    def metrics(self) -> dict[str, float]:
        return {"skipped": float(self.total), "skipped_in_a_row": float(self.in_a_row)}

    def sentences(self, done: int) -> list[str]:
        """A warning about skipped updates. The next warning comes when their number has doubled."""
        if not self.total or self.total < 2 * self._warned_at:
            return []
        self._warned_at = self.total
        row = f", the last {self.in_a_row} of {self._worst} in a row" if self.in_a_row > 1 else ""
        return [f"{self.stage}: {updates(self.total)} skipped up to step {done}{row}, {WHY}"]

    def error(self, done: int, good: int) -> TrainingError:
        """The error that stops the training, with remedies. The run continues from the checkpoint of step `good`."""
        flag = f"--{self._worst.replace('_', '-')}"
        config = self.learners[self._worst].config
        clipped = f"{flag}.clip {config.clip / 10 or 1:g}"
        state = f"the state after step {good} is kept" if good else "there is no earlier state, so it starts again"
        return TrainingError(
            f"{self.stage}: training stopped after step {done}, because the gradients of the last {self.in_a_row} "
            f"updates of {self._worst} were not finite; {state}. Run the same command again with a lower learning rate "
            f"({flag}.lr {config.lr / 10:g}), with clipped gradients ({clipped}), or with --precision fp32: "
            "these settings may change now"
        )


def updates(total: int) -> str:
    """`1 update was` or `2 updates were`."""
    return counted(total, "update was", "updates were")
