"""The output folder: the request, the finished chunks, and the archives that are assembled from them.

A chunk is written atomically, after its pictures. When all chunks of a shard exist, its archive is written and they
are removed. The final files depend neither on the time nor on the process. Only the files themselves show what is
finished: a missing file is drawn again, even if the state file marks the folder as finished.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prologue.bulk.plan import Plan
from prologue.data.pictures import WRITTEN_NAME, SampleArchive, is_whole_archive, is_whole_png, save_png
from prologue.errors import ConfigError, RunError
from prologue.utils.files import atomic_write, temporary_of
from prologue.utils.locks import LOCK
from prologue.utils.serialization import load_json, save_json

STATE = "generation.json"
_FOUND = {"batch", "compiled", "threads"}
"""Keys that the first call adds to the request."""
GRID = "grid.png"
_CHUNKS = ".chunks"
Chunk = dict[str, np.ndarray]
"""`prologue` (n, P) and `visual` (n, N) ids; `images` (n, H, W, 3) uint8 if archives are written."""


class Output:
    """The folder for the images of one request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chunks = folder / _CHUNKS

    def state(self, request: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
        """The state that an earlier call with this request wrote. None if there is none, or with `overwrite`.

        Raises:
            RunError: the folder holds other files, or images of another request. Nothing is changed.
        """
        if overwrite or not self.folder.exists():
            return None
        # Empty, or left by a process that was killed before it wrote the state.
        if all(path.name == LOCK or temporary_of(path.name) == STATE for path in self.folder.iterdir()):
            return None
        if not (self.folder / STATE).is_file():
            raise RunError(
                f"{self.folder} is not empty: give another --out, or --overwrite to replace the images in it"
            )
        found = _read(self.folder / STATE)
        if found["request"] == request:
            return found
        changes = "; ".join(_changes(found["request"], request))
        raise RunError(
            f"{self.folder} holds images of other settings ({changes}): "
            "repeat those, give another --out, or --overwrite to start again"
        )

    def start(self, state: Mapping[str, Any]) -> None:
        """Remove the files of earlier calls, and no others, and write the state."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STATE).unlink(missing_ok=True)
        self.clear()
        for path in list(self.folder.iterdir()):
            if WRITTEN_NAME.fullmatch(temporary_of(path.name) or path.name):
                path.unlink()
        save_json(self.folder / STATE, dict(state))

    def finish(self, state: Mapping[str, Any]) -> None:
        """Mark the folder as finished."""
        if not state.get("finished"):
            save_json(self.folder / STATE, {**state, "finished": True})
        self.clear()
        for path in list(self.folder.iterdir()):  # left by writers that were killed
            if WRITTEN_NAME.fullmatch(temporary_of(path.name) or ""):
                path.unlink()

    def clear(self) -> None:
        """Remove the kept chunks."""
        shutil.rmtree(self._chunks, ignore_errors=True)

    def missing(self, plan: Plan, size: tuple[int, int] | None, names: Callable[[int], Sequence[str]]) -> list[int]:
        """The chunks that lack a picture, or whose images are neither in their shard nor in a kept chunk.

        `size` is the size of archived images, None without archives; `names` gives the pictures of a chunk. Only the
        ends of files are read, so 50000 files take seconds.
        """
        shards = [size is None or self.has_shard(plan, shard, size) for shard in range(plan.shards)]
        return [
            chunk
            for chunk in range(plan.chunks)
            if not (
                (shards[plan.shard_of(chunk)] or self.keeps(chunk))
                and all(is_whole_png(self.folder / name) for name in names(chunk))
            )
        ]

    def has_shard(self, plan: Plan, shard: int, size: tuple[int, int]) -> bool:
        """Whether the archive of a shard exists and is complete."""
        return is_whole_archive(self.folder / plan.shard_name(shard), len(plan.shard_images(shard)), size)

    def has_grid(self) -> bool:
        return is_whole_png(self.folder / GRID)

    def keeps(self, chunk: int) -> bool:
        """Whether a chunk is drawn and its shard is not assembled yet."""
        return self._chunk(chunk).is_file()

    def forget(self, chunks: Sequence[int]) -> None:
        """Remove kept chunks."""
        for number in chunks:
            self._chunk(number).unlink(missing_ok=True)

    def add(self, number: int, chunk: Chunk, pictures: Sequence[tuple[str, UInt8[np.ndarray, "H W 3"]]]) -> None:
        """Write the pictures of a chunk, then the chunk."""
        for name, pixels in pictures:
            save_png(self.folder / name, Image.fromarray(pixels), durable=False)
        with atomic_write(self._chunk(number), durable=False) as file:
            np.savez(file, **chunk)  # type: ignore[arg-type]

    def read(self, number: int) -> Chunk:
        """Read a kept chunk; a damaged one raises a `RunError`."""
        try:
            with np.load(self._chunk(number), allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self._chunk(number)} cannot be read ({error}): remove it and run again") from error

    def complete(self, plan: Plan, shard: int) -> bool:
        """Whether all chunks of a shard are kept."""
        return all(map(self.keeps, plan.shard_chunks(shard)))

    def assemble(self, plan: Plan, shard: int, size: tuple[int, int], columns: Mapping[str, np.ndarray]) -> None:
        """Write the archive of a shard chunk by chunk, with the arrays `columns` beside images and tokens."""
        tokens: list[Chunk] = []
        path = self.folder / plan.shard_name(shard)
        with SampleArchive(path, len(plan.shard_images(shard)), size) as archive:
            for number in plan.shard_chunks(shard):
                chunk = self.read(number)
                archive.add(chunk.pop("images"))
                tokens.append(chunk)
            parts = {name: np.concatenate([chunk[name] for chunk in tokens]) for name in ("prologue", "visual")}
            archive.finish(**columns, **parts)
        self.forget(plan.shard_chunks(shard))

    def _chunk(self, number: int) -> Path:
        return self._chunks / f"{number:06d}.npz"


def _read(path: Path) -> dict[str, Any]:
    try:
        state = load_json(path)
        if isinstance(state, dict) and isinstance(state["request"], dict) and state.keys() >= _FOUND:
            return state
    except (ConfigError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}): give another --out, or remove the folder") from error
    raise RunError(f"{path} does not state the settings of the images: give another --out, or remove the folder")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences, each as `temperature: 1.0 → 0.9`."""
    out = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            out += _changes(before, after, f"{prefix}{name}.")
        elif before != after:
            out.append(f"{prefix}{name}: {_short(before)} → {_short(after)}")
    return out


def _short(value: Any) -> str:
    text = re.sub(r"\s+", " ", str(value))
    return text if len(text) <= 60 else text[:57] + "…"
