"""Processes that share work. Each computes whole batches, so results do not depend on the number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from prologue.errors import PrologueError, RunError
from prologue.utils.device import pick_device
from prologue.utils.launcher import environment_named, launched
from prologue.utils.locks import folder_lock


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the number of processes that a launcher (`accelerate launch`, `torchrun`) started.

    The batches and the results are the same for any number of processes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """The device on which this process computes and exchanges rows."""

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join the launcher's processes, each on its own device; without a launcher, return this process alone."""
        chosen = pick_device(device)
        if launched().world == 1:
            return cls(device=chosen)
        from accelerate import PartialState

        with environment_named():
            # Shares of work differ, and a process that has finished waits for the others.
            state = PartialState(cpu=chosen.type == "cpu", timeout=timedelta(days=1))
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints for all processes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; all processes get the same answer."""
        return bool(self.gather(torch.tensor([[flag]], device=self.device)).any())

    @contextmanager
    def folder_lock(self, folder: Path) -> Iterator[None]:
        """Lock a folder in the main process, for all processes.

        Raises:
            RunError: the main process cannot lock it; raised in every process.
        """
        refused: PrologueError | OSError | None = None
        with ExitStack() as held:
            if self.main:
                try:
                    held.enter_context(folder_lock(folder))
                except (PrologueError, OSError) as error:
                    refused = error
            if self.any(refused is not None):
                raise refused or RunError(f"the main process cannot work in {folder}: its message says why")
            yield

    def share(self, steps: Sequence[int]) -> Sequence[int]:
        """Return the steps of this process. They are consecutive, so that gathered rows are in the order of the
        steps."""
        start, stop = (len(steps) * rank // self.world for rank in (self.rank, self.rank + 1))
        return steps[start:stop]

    def gather(self, rows: Shaped[Tensor, "n d"]) -> Shaped[Tensor, "m d"]:
        """Return the rows of all processes in the order of ranks, on the CPU; a process without rows passes (0, 0)."""
        if self.world == 1:
            return rows.cpu()
        shape = torch.tensor([rows.shape[0], rows.shape[1]], device=self.device)
        shapes = [torch.empty_like(shape) for _ in range(self.world)]
        torch.distributed.all_gather(shapes, shape)
        counts = [int(shape[0]) for shape in shapes]
        width = max(int(shape[1]) for shape in shapes)
        padded = torch.zeros(max(counts), width, dtype=rows.dtype, device=self.device)
        padded[: len(rows), : rows.shape[1]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])


ALONE = Processes()


def main_decides(flag: bool) -> bool:
    """Return the flag of the main process in all processes; without a process group, return `flag`."""
    if not torch.distributed.is_initialized():
        return flag
    flags = [flag]
    torch.distributed.broadcast_object_list(flags, src=0)
    return flags[0]


def end_with_parent() -> None:
    """Send SIGTERM to this spawned process when its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not spawned"

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
