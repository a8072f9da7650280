"""The token store of stage 2: the ids of every view of every image, in memory-mapped shards.

A shard file is an array of records, one per image: label (int32), then the ids of each view, prologue before visual,
each counted from 0 in its own codebook, in the smallest of uint16 and int32 that holds both. `index.json` is written
last: a folder with it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from prologue.errors import CheckpointError, ConfigError, DataError, RunError
from prologue.models.sequence import TokenIds
from prologue.utils.files import write_whole
from prologue.utils.serialization import from_dict, load_json, save_json

INDEX = "index.json"
PROGRESS = "progress.json"
_FORMAT = 1
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class StoreLayout:
    """The sizes that fix a store's records."""

    prologue_tokens: int
    visual_tokens: int
    views: int
    prologue_codebook_size: int
    visual_codebook_size: int

    @property
    def record(self) -> np.dtype[np.void]:
        largest = max(self.prologue_codebook_size, self.visual_codebook_size)
        ids = "<u2" if largest <= 1 << 16 else "<i4"
        return np.dtype([("label", "<i4"), ("ids", ids, (self.views, self.prologue_tokens + self.visual_tokens))])


@dataclass(frozen=True)
class _Shard:
    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class _Index:
    """The contents of index.json and progress.json."""

    format: int
    layout: StoreLayout
    meta: dict[str, Any]
    shards: tuple[_Shard, ...]

    @property
    def count(self) -> int:
        return sum(shard.count for shard in self.shards)

    def save(self, path: Path) -> None:
        save_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> _Index:
        """Raises `CheckpointError` naming the file if it is missing, damaged or of another format."""
        try:
            plain = load_json(path)
            if not isinstance(plain, dict) or plain.get("format") != _FORMAT:
                raise ConfigError(f"{path} is not a token index of format {_FORMAT}")
            shards = tuple(from_dict(_Shard, shard, "shards") for shard in plain["shards"])
            return cls(_FORMAT, from_dict(StoreLayout, plain["layout"], "layout"), dict(plain["meta"]), shards)
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: no usable token store there ({error}); `prologue train --stage tokens` makes it again"
            ) from error


class TokenStoreWriter:
    """Appends images in order; killed at any moment, a new writer on the folder goes on after the last whole shard.

    `done` images are stored: append image `done` next. `meta` holds JSON values that the reader should see (the
    tokenizer's hash, the data's fingerprint). A folder begun with other sizes or meta is refused (`RunError`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        prologue_tokens: int,
        visual_tokens: int,
        views: int,
        prologue_codebook_size: int,
        visual_codebook_size: int,
        meta: Mapping[str, Any] | None = None,
        shard_images: int = 4096,
    ) -> None:
        self.folder = folder
        self.layout = StoreLayout(prologue_tokens, visual_tokens, views, prologue_codebook_size, visual_codebook_size)
        self._shard_images = max(1, min(shard_images, _SHARD_BYTES // self.layout.record.itemsize))
        self._pending: list[np.ndarray] = []
        self._index = self._resume(_Index(_FORMAT, self.layout, json.loads(json.dumps(dict(meta or {}))), ()))

    def _resume(self, fresh: _Index) -> _Index:
        self.finished = (self.folder / INDEX).exists()
        path = self.folder / (INDEX if self.finished else PROGRESS)
        if not path.exists():
            return fresh
        found = _Index.load(path)
        if (found.layout, found.meta) != (fresh.layout, fresh.meta):
            raise RunError(
                f"{self.folder} holds tokens of another tokenizer or other data ({_differences(found, fresh)}): "
                "delete the folder to compute them again"
            )
        for shard in found.shards:
            _check_size(self.folder, shard, found.layout)
        return found

    @property
    def done(self) -> int:
        """Images that are stored for good; those appended since the last whole shard are not."""
        return self._index.count

    def append(self, tokens: TokenIds, labels: Int64[Tensor, " B"]) -> None:
        """Add B images: `tokens` has B · views rows, the views of an image in a row; labels are class ids."""
        if self.finished:
            raise RunError(f"{self.folder} is already complete with {self.done} images")
        layout, count = self.layout, len(labels)
        block = np.empty(count, dtype=layout.record)
        parts = (
            ("prologue", tokens.prologue, layout.prologue_tokens, layout.prologue_codebook_size),
            ("visual", tokens.visual, layout.visual_tokens, layout.visual_codebook_size),
        )
        start = 0
        for name, ids, length, codebook in parts:
            if tuple(ids.shape) != (count * layout.views, length):
                raise DataError(
                    f"{count} images of {layout.views} views need {name} ids ({count * layout.views}, {length}), "
                    f"not {tuple(ids.shape)}"
                )
            taken = ids.cpu().numpy()
            if taken.size and not 0 <= taken.min() <= taken.max() < codebook:
                raise DataError(f"{name} ids must lie in 0…{codebook - 1}")
            block["ids"][:, :, start : start + length] = taken.reshape(count, layout.views, length)
            start += length
        block["label"] = labels.cpu().numpy()
        self._pending.append(block)
        while sum(map(len, self._pending)) >= self._shard_images:
            waiting = np.concatenate(self._pending)
            self._write(waiting[: self._shard_images])
            self._pending = [waiting[self._shard_images :]]

    def finish(self) -> TokenStore:
        """Write what is left and the index; the store, opened. Done once, it only opens the store again."""
        if not self.finished:
            waiting = [block for block in self._pending if len(block)]
            if waiting:
                self._write(np.concatenate(waiting))
            self._pending = []
            self._save(INDEX)
            (self.folder / PROGRESS).unlink(missing_ok=True)
            self.finished = True
        return TokenStore(self.folder)

    def _write(self, records: np.ndarray) -> None:
        file = f"shard-{len(self._index.shards):05d}.bin"
        content = records.tobytes()
        try:
            write_whole(self.folder / file, content)
        except OSError as error:
            raise self._no_room(file, error) from error
        shard = _Shard(file, len(records), hashlib.sha256(content).hexdigest())
        self._index = _Index(_FORMAT, self.layout, self._index.meta, (*self._index.shards, shard))
        self._save(PROGRESS)

    def _save(self, file: str) -> None:
        try:
            self._index.save(self.folder / file)
        except OSError as error:
            raise self._no_room(file, error) from error

    def _no_room(self, file: str, error: OSError) -> RunError:
        return RunError(
            f"{self.folder / file} cannot be written ({error.strerror}): make room and run the same command again; "
            f"the tokens stored so far are kept"
        )


def _differences(found: _Index, asked: _Index) -> str:
    there = {**asdict(found.layout), **found.meta}
    here = {**asdict(asked.layout), **asked.meta}
    return ", ".join(
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    )


def _check_size(folder: Path, shard: _Shard, layout: StoreLayout) -> None:
    path, expected = folder / shard.file, shard.count * layout.record.itemsize
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} is missing; `prologue train --stage tokens` makes it again") from error
    if actual != expected:
        raise CheckpointError(
            f"{path} holds {actual} bytes where its index says {expected}; `prologue train --stage tokens` makes it "
            "again"
        )


class TokenStore:
    """A finished store, opened by memory-mapping; its file sizes are checked at once, its hashes by `verify`.

    Raises `CheckpointError` naming the file that is missing, truncated or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = _Index.load(folder / INDEX)
        self.layout = self._index.layout
        self.meta = self._index.meta
        self.views = self.layout.views
        self._shards = []
        for shard in self._index.shards:
            _check_size(folder, shard, self.layout)
            self._shards.append(np.memmap(folder / shard.file, dtype=self.layout.record, mode="r"))
        self._starts = np.cumsum([0, *(shard.count for shard in self._index.shards)])

    def __len__(self) -> int:
        return self._index.count

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class id of every image."""
        parts = [np.asarray(shard["label"], dtype=np.int64) for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def get(
        self, indices: Int64[np.ndarray, " B"], view_indices: Int64[np.ndarray, " B"]
    ) -> tuple[TokenIds, Int64[Tensor, " B"]]:
        """Tokens and class ids (int64) of view `view_indices[b]` of image `indices[b]`."""
        rows = np.asarray(indices, dtype=np.int64)
        views = np.broadcast_to(np.asarray(view_indices, dtype=np.int64), rows.shape)
        for name, given, limit in (("image", rows, len(self)), ("view", views, self.views)):
            if given.size and (given.min() < 0 or given.max() >= limit):
                raise IndexError(f"{name} index outside 0…{limit - 1} of the token store {self.folder}")
        width = self.layout.prologue_tokens + self.layout.visual_tokens
        ids = np.empty((len(rows), width), dtype=np.int64)
        labels = np.empty(len(rows), dtype=np.int64)
        homes = np.searchsorted(self._starts, rows, side="right") - 1
        for home in np.unique(homes).tolist():
            wanted = np.flatnonzero(homes == home)
            shard, inside = self._shards[home], rows[wanted] - self._starts[home]
            ids[wanted] = shard["ids"][inside, views[wanted]]
            labels[wanted] = shard["label"][inside]
        whole = torch.from_numpy(ids)
        border = self.layout.prologue_tokens
        sizes = (self.layout.prologue_codebook_size, self.layout.visual_codebook_size)
        for part, size in zip((ids[:, :border], ids[:, border:]), sizes, strict=True):
            if part.size and not 0 <= part.min() <= part.max() < size:
                raise CheckpointError(
                    f"{self.folder} is damaged (it holds an id outside of its codebook 0…{size - 1}): delete this "
                    "folder, and the same `prologue train` command makes it again"
                )
        return TokenIds(whole[:, :border], whole[:, border:]), torch.from_numpy(labels)

    def visual_histogram(self) -> Int64[np.ndarray, " K"]:
        """How often each visual id occurs, over all images and views."""
        counts = np.zeros(self.layout.visual_codebook_size, dtype=np.int64)
        for shard in self._shards:
            visual = shard["ids"][:, :, self.layout.prologue_tokens :]
            counts += np.bincount(visual.ravel(), minlength=len(counts))
        return counts

    def verify(self) -> None:
        """Read every shard and compare its hash; raises `CheckpointError` naming the one that differs."""
        for shard, records in zip(self._index.shards, self._shards, strict=True):
            if hashlib.sha256(records.data).hexdigest() != shard.sha256:
                raise CheckpointError(
                    f"{self.folder / shard.file} is damaged (its hash differs from the index): delete it, and "
                    "`prologue train --stage tokens` makes it again"
                )
