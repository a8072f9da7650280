"""Exact resume states: atomic, checksummed, the newest good one wins."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from prologue.errors import CheckpointError, ConfigError, RunError
from prologue.models.weights import file_hash, read_tensors, write_tensors
from prologue.utils.serialization import load_json, save_json

STATE = "state.safetensors"
CHECKSUM = "checksum.json"
WRITING = ".writing-"
READ_ATTEMPTS = 10


class Checkpoints:
    """`checkpoints/STAGE/step-00001000/` of one stage; the last `keep` are kept, and the last good one."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: dict[str, Tensor], failing: bool = False) -> None:
        """Store the state after `step` steps. A full disk is a `RunError`, and costs no older checkpoint.

        `failing` marks a state whose last updates were skipped: it does not replace the last one before them.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{WRITING}{step:08d}"
        for left in self.folder.glob(f"{WRITING}*"):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            write_tensors(temporary / STATE, tensors)
            checksum = {"step": step, "sha256": file_hash(temporary / STATE)}
            save_json(temporary / CHECKSUM, checksum | ({"failing": True} if failing else {}))
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_full(error):
                raise RunError(
                    f"no room for a checkpoint in {self.folder}: make room and run the same command again; "
                    "it continues from the last checkpoint"
                ) from error
            raise
        # A later one can only be damaged, or the run would have continued from it; it must not count among those kept.
        earlier = [other for other in self.steps() if other <= step]
        self._keep({*earlier[-self.keep :], *self.good(step + 1)[-1:]})

    def good(self, before: int) -> list[int]:
        """The steps of those that are not failing and of fewer steps than `before`, in order."""
        return [step for step in self.steps() if step < before and not self._failing(step)]

    def drop_failing(self, before: int) -> None:
        """Remove all but the good ones."""
        self._keep(set(self.good(before)))

    def _keep(self, steps: set[int]) -> None:
        for step in self.steps():
            if step not in steps:
                shutil.rmtree(self._path(step), ignore_errors=True)

    def _failing(self, step: int) -> bool:
        try:
            return bool(load_json(self._path(step) / CHECKSUM).get("failing"))
        except (ConfigError, AttributeError):  # a damaged one
            return False

    def restore(self, warn: Callable[[str], None]) -> tuple[int, dict[str, Tensor]] | None:
        """(steps done, state) of the newest whole checkpoint; damaged ones are named to `warn` and passed over."""
        for step in reversed(self.steps()):
            try:
                return step, self._read(step)
            except (CheckpointError, ConfigError) as error:
                warn(f"passing over a damaged checkpoint: {error}")
        return None

    def newest(self, only: tuple[str, ...]) -> tuple[int, str, dict[str, Tensor]] | None:
        """(steps done, hash, tensors) of the newest whole checkpoint, of the tensors whose names begin so.

        Another process may be training: where it removes what is being read, there is a newer one to read.
        """
        for _ in range(READ_ATTEMPTS):
            seen = self.steps()
            for step in reversed(seen):
                try:
                    tensors = self._read(step, only)
                    return step, str(load_json(self._path(step) / CHECKSUM)["sha256"]), tensors
                except (CheckpointError, ConfigError, OSError):
                    if not self._path(step).exists():
                        break
            if self.steps() == seen:
                break
        return None

    def clear(self) -> None:
        """Remove all of this stage's checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep_last(self) -> None:
        """Remove all but the newest: what a finished stage needs to go on for longer."""
        self._keep(set(self.steps()[-1:]))

    def _read(self, step: int, only: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
        path = self._path(step)
        expected = load_json(path / CHECKSUM)
        if not isinstance(expected, dict) or expected.get("step") != step:
            raise CheckpointError(f"{path / CHECKSUM} does not describe step {step}")
        if not (path / STATE).is_file() or file_hash(path / STATE) != expected.get("sha256"):
            raise CheckpointError(f"{path / STATE} differs from its checksum")
        return read_tensors(path / STATE, only)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The numbers of steps of the checkpoints that are there, in order."""
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())


def is_full(error: BaseException) -> bool:
    """True if an error means that the disk has no room (safetensors reports it as text)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)
