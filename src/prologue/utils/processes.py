"""Processes that share work. Those of a launcher compute whole batches, so that their number changes no result."""

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
    """This process among those that a launcher started (`accelerate launch`, `torchrun`); alone by default.

    Batches are the same for any number of processes, so that figures are, too.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes, and where rows are exchanged."""

    @classmethod
    def join(cls, device: str) -> Processes:
        """The processes of the launcher that started this one, each on a device of its own; else this one alone."""
        chosen = pick_device(device)
        if launched().world == 1:
            return cls(device=chosen)
        from accelerate import PartialState

        with environment_named():
            # Shares differ, and who is done first waits for the others.
            state = PartialState(cpu=chosen.type == "cpu", timeout=timedelta(days=1))
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set, the same for all."""
        return bool(self.gather(torch.tensor([[flag]], device=self.device)).any())

    @contextmanager
    def folder_lock(self, folder: Path) -> Iterator[None]:
        """Let the main process hold the lock of a folder for all; where it cannot, each has a `RunError`."""
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
        """The steps of this process: a run of them, so that rows gathered in the order of ranks are in order."""
        start, stop = (len(steps) * rank // self.world for rank in (self.rank, self.rank + 1))
        return steps[start:stop]

    def gather(self, rows: Shaped[Tensor, "n d"]) -> Shaped[Tensor, "m d"]:
        """The rows of all processes in the order of ranks, on the CPU; a process without rows gives (0, 0)."""
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
    """The flag of the main process, for all that a launcher started; each decides alone where they share no work."""
    if not torch.distributed.is_initialized():
        return flag
    flags = [flag]
    torch.distributed.broadcast_object_list(flags, src=0)
    return flags[0]


def end_with_parent() -> None:
    """Let this process, which another one spawned, end with a SIGTERM when that one ends, even where it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not spawned"

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
