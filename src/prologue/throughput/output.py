"""The folder that is filled: what was asked of it, the chunks that are done, and the archives made of them.

A chunk is written whole or not at all, its pictures before it. When all chunks of a shard are there, its archive is
put in place and they are removed. Nothing in the final files depends on when or by whom it was written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prologue.errors import ConfigError, RunError
from prologue.images import WRITTEN_NAME, SampleArchive
from prologue.plain import load_json, save_json
from prologue.throughput.plan import Plan

STATE = "generation.json"
_HALF_STATE = f"{STATE}.tmp"
_FOUND = {"batch", "compiled", "threads"}
"""What the first call found out beside the request."""
_CHUNKS = ".chunks"
Chunk = dict[str, np.ndarray]
"""`images` (n, H, W, 3) uint8 where archives are written, `prologue` (n, P) and `visual` (n, N) ids."""


class Output:
    """One folder for the images of one request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chunks = folder / _CHUNKS

    def state(self, request: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
        """What an earlier call with this request left in the folder; None where nothing did, and to `overwrite` it.

        Files of something else, or of another request, are a `RunError`; nothing is touched.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file: give a folder with --out")
        if overwrite or not self.folder.exists():
            return None
        if all(path.name == _HALF_STATE for path in self.folder.iterdir()):  # empty, or killed at the very start
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
            "repeat those, give another --out, or --overwrite to start anew"
        )

    def start(self, state: Mapping[str, Any]) -> None:
        """Remove what earlier calls wrote, and nothing else, and state what is being made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STATE).unlink(missing_ok=True)
        self.clear()
        for path in self.folder.iterdir():
            if WRITTEN_NAME.fullmatch(path.name.removesuffix(".tmp")):
                path.unlink()
        save_json(self.folder / STATE, dict(state))

    def finish(self, state: Mapping[str, Any]) -> None:
        """State that all is done."""
        save_json(self.folder / STATE, {**state, "finished": True})
        self.clear()

    def clear(self) -> None:
        """Remove the chunks that are kept, which are of no use to a finished folder."""
        shutil.rmtree(self._chunks, ignore_errors=True)

    def has(self, plan: Plan, chunk: int) -> bool:
        """Whether a chunk is done: kept for itself, or in its shard."""
        return self._chunk(chunk).is_file() or (self.folder / plan.shard_name(plan.shard_of(chunk))).is_file()

    def done(self, plan: Plan) -> int:
        """How many chunks are done, by all processes."""
        kept = {int(path.stem) for path in self._chunks.glob("*.npz")} if self._chunks.is_dir() else set()
        for shard in range(plan.shards):
            if (self.folder / plan.shard_name(shard)).is_file():
                kept.update(plan.shard_chunks(shard))
        return len(kept)

    def add(self, number: int, chunk: Chunk, pictures: Sequence[tuple[str, UInt8[np.ndarray, "H W 3"]]]) -> None:
        """Write a chunk's pictures, then the chunk."""
        for name, pixels in pictures:
            temporary = self.folder / f"{name}.tmp"
            Image.fromarray(pixels).save(temporary, format="PNG")
            temporary.replace(self.folder / name)
        self._chunks.mkdir(exist_ok=True)
        temporary = self._chunk(number).with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **chunk)  # type: ignore[arg-type]
        temporary.replace(self._chunk(number))

    def read(self, number: int) -> Chunk:
        """A chunk that is done and not yet in a shard; a damaged one is a `RunError`."""
        try:
            with np.load(self._chunk(number), allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self._chunk(number)} cannot be read ({error}): remove it and run again") from error

    def complete(self, plan: Plan, shard: int) -> bool:
        """Whether all chunks of a shard are kept and it can be put together."""
        return all(self._chunk(chunk).is_file() for chunk in plan.shard_chunks(shard))

    def assemble(self, plan: Plan, shard: int, size: tuple[int, int], beside: Mapping[str, np.ndarray]) -> None:
        """Put a shard's archive in place, chunk by chunk, with `beside` next to images and tokens."""
        tokens: list[Chunk] = []
        path = self.folder / plan.shard_name(shard)
        with SampleArchive(path, len(plan.shard_images(shard)), size) as archive:
            for number in plan.shard_chunks(shard):
                chunk = self.read(number)
                archive.add(chunk.pop("images"))
                tokens.append(chunk)
            parts = {name: np.concatenate([chunk[name] for chunk in tokens]) for name in ("prologue", "visual")}
            archive.finish(**beside, **parts)
        self.tidy(plan, shard)

    def tidy(self, plan: Plan, shard: int) -> None:
        """Remove the chunks of a shard that is in place."""
        for number in plan.shard_chunks(shard):
            self._chunk(number).unlink(missing_ok=True)

    def _chunk(self, number: int) -> Path:
        return self._chunks / f"{number:06d}.npz"


def _read(path: Path) -> dict[str, Any]:
    try:
        state = load_json(path)
        if isinstance(state, dict) and isinstance(state["request"], dict) and state.keys() >= _FOUND:
            return state
    except (ConfigError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}): give another --out, or remove the folder") from error
    raise RunError(f"{path} does not say what the images are of: give another --out, or remove the folder")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`temperature: 1.0 → 0.9` for everything that differs."""
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
