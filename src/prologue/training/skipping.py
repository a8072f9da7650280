"""Updates that were skipped because their gradients were not finite: counted, said, and the end of a hopeless run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prologue.data.names import counted
from prologue.errors import TrainingError
from prologue.training.learner import Learner

WHY = "because their gradients were not finite"


class Skipping:
    """The skipped updates of a stage's networks, which `learners` has by the section of their settings."""

    def __init__(self, stage: str, learners: Mapping[str, Learner], limit: int) -> None:
        self.stage, self.learners, self.limit = stage, learners, limit
        self.total, self.in_a_row = 0, 0
        """Of all networks together; of the one that skipped the most of its last updates."""
        self._said = 0
        self.look()
        self._said = self.total

    def look(self) -> None:
        """Take over what the device has counted, which waits for it."""
        counts = torch.stack([learner.skips for learner in self.learners.values()]).tolist()
        self.total = sum(total for total, _ in counts)
        self.in_a_row, self._worst = max(
            (row, section) for (_, row), section in zip(counts, self.learners, strict=True)
        )

    @property
    def failing(self) -> bool:
        """Whether the last update of any network was skipped."""
        return self.in_a_row > 0

    @property
    def hopeless(self) -> bool:
        """Whether so many were skipped in a row that the training is to stop."""
        return bool(self.limit) and self.in_a_row >= self.limit

    def metrics(self) -> dict[str, float]:
        return {"skipped": float(self.total), "skipped_in_a_row": float(self.in_a_row)}

    def sentences(self, done: int) -> list[str]:
        """A sentence where there are skipped updates; the next one when there are twice as many."""
        if not self.total or self.total < 2 * self._said:
            return []
        self._said = self.total
        row = f", the last {self.in_a_row} of {self._worst} in a row" if self.in_a_row > 1 else ""
        return [f"{self.stage}: {updates(self.total)} skipped up to step {done}{row}, {WHY}"]

    def error(self, done: int, good: int) -> TrainingError:
        """What to try; `good` is the step of the checkpoint that the run continues from."""
        flag = f"--{self._worst.replace('_', '-')}"
        config = self.learners[self._worst].config
        clipped = f"{flag}.clip {config.clip / 10 or 1:g}"
        state = f"the state after step {good} is kept" if good else "there is no earlier state, so it begins anew"
        return TrainingError(
            f"{self.stage}: training stopped after step {done}, because the gradients of the last {self.in_a_row} "
            f"updates of {self._worst} were not finite; {state}. Run the same command again with a lower learning rate "
            f"({flag}.lr {config.lr / 10:g}), with clipped gradients ({clipped}), or with --precision fp32: "
            "these settings may change now"
        )


def updates(total: int) -> str:
    return counted(total, "update was", "updates were")
