"""What the environment says: the processes that a launcher started, and variables that cannot be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prologue.errors import ConfigError


@dataclass(frozen=True)
class Launched:
    """This process among those of a launcher (`accelerate launch`, `torchrun`); alone without one."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0


def launched() -> Launched:
    """What the launcher's variables say, or those of MPI. `RANK` counts only beside a `WORLD_SIZE` above 1.

    A value that is no such number is a `ConfigError` naming the variable.
    """
    world = _number(("WORLD_SIZE", *(f"{name}_SIZE" for name in _MPI)), "1", 1, None)
    if world == 1:
        return Launched()
    _number(("LOCAL_RANK",), "0", 0, world)
    return Launched(_number(("RANK", *(f"{name}_RANK" for name in _MPI)), None, 0, world), world)


_MPI = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")
"""What MPI's launchers call their variables after, which Accelerate reads, too."""


def _number(names: tuple[str, ...], default: str | None, least: int, limit: int | None) -> int:
    name = next((each for each in names if each in os.environ), names[0])
    text = os.environ.get(name, default)
    wanted = f"a whole number from {least}" + (" on" if limit is None else f" to {limit - 1}")
    if text is None:
        raise ConfigError(f"{name} is not set, and the number of processes is {limit}: {_REMEDY}")
    if not re.fullmatch(r"\s*\d+\s*", text) or not least <= int(text) < (limit or int(text) + 1):
        raise ConfigError(f"the environment variable {name} must be {wanted}, not {text!r}: {_REMEDY}")
    return int(text)


_REMEDY = "start the command with `accelerate launch` or `torchrun`, which set it, or unset WORLD_SIZE"


_READ = (
    "ACCELERATE_",
    "FSDP_",
    "MEGATRON_LM_",
    "LOCAL_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    *(f"{name}_" for name in _MPI),
)
"""How the names of the variables begin that Accelerate and torch read."""


@contextmanager
def environment_named() -> Iterator[None]:
    """Turn a `ValueError` about an environment variable, of a library that reads it, into a `ConfigError` naming it."""
    try:
        yield
    except ValueError as error:
        missing = re.search(r"environment variable (\w+) expected", str(error))
        if missing is not None:
            raise ConfigError(
                f"LOCAL_RANK is set as by a launcher, and {missing[1]} is not: unset LOCAL_RANK, or start the command "
                "with `accelerate launch` or `torchrun`"
            ) from error
        found = re.fullmatch(r"(?:invalid literal for int\(\) .*: '|invalid truth value )(.*?)'?", str(error))
        same = [] if found is None else [name for name in os.environ if os.environ[name].lower() == found[1].lower()]
        named = [name for name in same if name.startswith(_READ)] or same
        if not named:
            raise
        shown = " or ".join(f"{name}={os.environ[name]}" for name in sorted(named))
        raise ConfigError(f"the environment variable {shown} cannot be read ({error}): change or unset it") from error
