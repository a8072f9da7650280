"""The processes of `accelerate launch`, or the only one there is."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, cpu: bool) -> Processes:
        """Meet the other processes, if there are any."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from accelerate import PartialState  # heavy, and of use to several processes alone

        state = PartialState(cpu=cpu)
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
