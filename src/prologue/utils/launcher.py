"""Environment variables of launchers (`accelerate launch`, `torchrun`, MPI)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prologue.errors import ConfigError

_MPI = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")
"""Prefixes of the variables of MPI launchers. Accelerate also reads these variables."""
_PREFIXES = (
    "ACCELERATE_",
    "FSDP_",
    "MEGATRON_LM_",
    "LOCAL_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    *(f"{name}_" for name in _MPI),
)
"""Prefixes of the variables that Accelerate and torch read."""
_REMEDY = "start the command with `accelerate launch` or `torchrun`, which set it, or unset WORLD_SIZE"


@dataclass(frozen=True)
class Launched:
    """The rank of this process and the number of processes that the launcher started; 0 of 1 without a launcher."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints for all processes."""
        return self.rank == 0


def launched() -> Launched:
    """Read the launcher's variables. `RANK` is ignored unless `WORLD_SIZE` is above 1.

    Raises:
        ConfigError: a variable is missing or is not a valid number.
    """
    world = _number(("WORLD_SIZE", *(f"{name}_SIZE" for name in _MPI)), "1", 1, None)
    if world == 1:
        return Launched()
    _number(("LOCAL_RANK",), "0", 0, world)
    return Launched(_number(("RANK", *(f"{name}_RANK" for name in _MPI)), None, 0, world), world)


def _number(names: tuple[str, ...], default: str | None, least: int, limit: int | None) -> int:
    """Return the number in the first variable that is set; it must be at least `least` and below `limit`."""
    name = next((each for each in names if each in os.environ), names[0])
    text = os.environ.get(name, default)
    if text is None:
        raise ConfigError(f"{name} is not set, and the number of processes is {limit}: {_REMEDY}")
    if not re.fullmatch(r"\s*\d+\s*", text) or not least <= int(text) < (limit or int(text) + 1):
        valid = f"of at least {least}" if limit is None else f"from {least} to {limit - 1}"
        raise ConfigError(f"the environment variable {name} must be a whole number {valid}, not {text!r}: {_REMEDY}")
    return int(text)


@contextmanager
def environment_named() -> Iterator[None]:
    """Turn a library's `ValueError` about an environment variable into a `ConfigError` that names the variable."""
    try:
        yield
    except ValueError as error:
        missing = re.search(r"environment variable (\w+) expected", str(error))
        if missing is not None:
            raise ConfigError(
                f"LOCAL_RANK is set as by a launcher, but {missing[1]} is not: unset LOCAL_RANK, or start the command "
                "with `accelerate launch` or `torchrun`"
            ) from error
        # Other messages show only the value.
        found = re.fullmatch(r"(?:invalid literal for int\(\) .*: '|invalid truth value )(.*?)'?", str(error))
        same = [] if found is None else [name for name in os.environ if os.environ[name].lower() == found[1].lower()]
        named = [name for name in same if name.startswith(_PREFIXES)] or same
        if not named:
            raise
        shown = " or ".join(f"{name}={os.environ[name]}" for name in sorted(named))
        raise ConfigError(f"the environment variable {shown} cannot be read ({error}): change or unset it") from error
