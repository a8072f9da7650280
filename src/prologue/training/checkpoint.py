"""Checkpoints: complete states with checksums, written atomically."""

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
    """The checkpoints of one stage, `checkpoints/STAGE/step-00001000/`. The last `keep` and the last good one stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: dict[str, Tensor], failing: bool = False) -> None:
        """Store the state after `step` steps. A full disk raises a `RunError`, and older checkpoints stay.

        `failing` marks a state whose last updates were skipped. The last good checkpoint before it stays.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{WRITING}{step:08d}"
        for left in self.folder.glob(f"{WRITING}*"):  # left by a process that was killed
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
                    f"the disk is full, so no checkpoint fits in {self.folder}: make room and run the same command "
                    "again; it continues from the last checkpoint"
                ) from error
            raise
        # A later checkpoint must be damaged, because the run did not continue from it. It is ignored.
        earlier = [other for other in self.steps() if other <= step]
        self._keep({*earlier[-self.keep :], *self.good(step + 1)[-1:]})

    def good(self, before: int) -> list[int]:
        """The steps below `before` whose checkpoints are not marked as failing, in order."""
        return [step for step in self.steps() if step < before and not self._failing(step)]

    def drop_failing(self, before: int) -> None:
        """Remove all checkpoints except the good ones below `before`."""
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
        """Step and state of the newest undamaged checkpoint; `warn` gets a sentence about each damaged one."""
        for step in reversed(self.steps()):
            try:
                return step, self._read(step)
            except (CheckpointError, ConfigError) as error:
                warn(f"skipping a damaged checkpoint: {error}")
        return None

    def newest(self, only: tuple[str, ...]) -> tuple[int, str, dict[str, Tensor]] | None:
        """Step, hash and tensors of the newest undamaged checkpoint; only tensors whose names begin with one of `only`.

        Another process may be training and remove a checkpoint that is being read. Then there is a newer one.
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
        """Remove all checkpoints except the newest, from which `--extend` continues a finished stage."""
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
        """The steps of the existing checkpoints, in order."""
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())


def is_full(error: BaseException) -> bool:
    """Whether an error means a full disk. safetensors reports it as text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)
