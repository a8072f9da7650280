"""The token store of stage 2: the ids of every view of every image, in memory-mapped shards.

A shard file is an array of records, one per image: the label (int32), then the ids of each view, prologue before
visual. Ids count from 0 in their own codebook. They are uint16 if both codebooks allow it, else int32. `index.json` is
written last: a folder with it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
_AGAIN = "`prologue train --stage tokens` makes it again"


@dataclass(frozen=True)
class StoreShape:
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
    layout: StoreShape
    meta: dict[str, Any]
    shards: tuple[_Shard, ...]

    @property
    def count(self) -> int:
        return sum(shard.count for shard in self.shards)

    @classmethod
    def load(cls, path: Path) -> _Index:
        """Read it and check the sizes of its shards. Raises `CheckpointError` naming a file that is unusable."""
        try:
            plain = load_json(path)
            if not isinstance(plain, dict) or plain.get("format") != _FORMAT:
                raise ConfigError(f"{path} is not a token index of format {_FORMAT}")
            index = from_dict(cls, plain)
        except ConfigError as error:
            raise CheckpointError(f"{path}: no usable token store ({error}); {_AGAIN}") from error
        for shard in index.shards:
            file, expected = path.parent / shard.file, shard.count * index.layout.record.itemsize
            try:
                actual = file.stat().st_size
            except OSError as error:
                raise CheckpointError(f"{file} is missing; {_AGAIN}") from error
            if actual != expected:
                raise CheckpointError(f"{file} holds {actual} bytes, but its index says {expected}; {_AGAIN}")
        return index


class TokenStoreWriter:
    """Appends images in order. After a kill, a new writer on the folder continues after the last whole shard.

    Args:
        layout: the sizes of the records.
        meta: JSON values for the reader, such as the hash of the tokenizer and the fingerprint of the data.
        shard_images: largest number of images in a shard.

    Raises:
        RunError: the folder was started with another layout or meta.
        CheckpointError: an index or a shard of the folder is damaged.
    """

    def __init__(
        self, folder: Path, layout: StoreShape, meta: Mapping[str, Any] | None = None, shard_images: int = 4096
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.finished = (folder / INDEX).exists()
        self._shard = np.empty(max(1, min(shard_images, _SHARD_BYTES // layout.record.itemsize)), dtype=layout.record)
        self._filled = 0
        self._index = _Index(_FORMAT, layout, json.loads(json.dumps(dict(meta or {}))), ())
        path = folder / (INDEX if self.finished else PROGRESS)
        if path.exists():
            found = _Index.load(path)
            if (found.layout, found.meta) != (layout, self._index.meta):
                raise RunError(
                    f"{folder} holds tokens of another tokenizer or other data ({_differences(found, self._index)}): "
                    "delete the folder to compute them again"
                )
            self._index = found

    @property
    def done(self) -> int:
        """Images in whole shards: append image `done` next. Those appended since the last whole shard do not count."""
        return self._index.count

    def append(self, tokens: TokenIds, labels: Int64[Tensor, " B"]) -> None:
        """Add B images. `tokens` has B · views rows, the views of an image next to each other; labels are class ids."""
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
            if not _inside(taken, codebook):
                raise DataError(f"{name} ids must lie in 0…{codebook - 1}")
            block["ids"][:, :, start : start + length] = taken.reshape(count, layout.views, length)
            start += length
        block["label"] = labels.cpu().numpy()
        while len(block):
            added = block[: len(self._shard) - self._filled]
            self._shard[self._filled : self._filled + len(added)] = added
            self._filled += len(added)
            block = block[len(added) :]
            if self._filled == len(self._shard):
                self._write_shard()

    def finish(self) -> TokenStore:
        """Write the rest and the index, and open the store. A finished store is only opened."""
        if not self.finished:
            if self._filled:
                self._write_shard()
            self._save(INDEX)
            (self.folder / PROGRESS).unlink(missing_ok=True)
            self.finished = True
        return TokenStore(self.folder)

    def _write_shard(self) -> None:
        file = f"shard-{len(self._index.shards):05d}.bin"
        content = self._shard[: self._filled].tobytes()
        self._save(file, content)
        shard = _Shard(file, self._filled, hashlib.sha256(content).hexdigest())
        self._index = replace(self._index, shards=(*self._index.shards, shard))
        self._filled = 0
        self._save(PROGRESS)

    def _save(self, file: str, content: bytes | None = None) -> None:
        """Write a shard, or the index as it is now."""
        try:
            if content is None:
                save_json(self.folder / file, asdict(self._index))
            else:
                write_whole(self.folder / file, content)
        except OSError as error:
            raise RunError(
                f"{self.folder / file} cannot be written ({error.strerror}): make room and run the same command again; "
                "the tokens in whole shards are kept"
            ) from error


def _inside(ids: np.ndarray, size: int) -> bool:
    return not ids.size or bool(ids.min() >= 0 and ids.max() < size)


def _differences(found: _Index, asked: _Index) -> str:
    there, here = ({**asdict(index.layout), **index.meta} for index in (found, asked))
    return ", ".join(
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    )


class TokenStore:
    """A finished store, opened by memory-mapping. Opening checks the sizes of its files, `verify` their hashes.

    Raises `CheckpointError` naming the file that is missing, truncated or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = _Index.load(folder / INDEX)
        self.layout = self._index.layout
        self.meta = self._index.meta
        self.views = self.layout.views
        self._shards = [
            np.memmap(folder / shard.file, dtype=self.layout.record, mode="r") for shard in self._index.shards
        ]
        self._starts = np.cumsum([0, *(shard.count for shard in self._index.shards)])

    def __len__(self) -> int:
        return self._index.count

    def get(
        self, indices: Int64[np.ndarray, " B"], view_indices: Int64[np.ndarray, " B"]
    ) -> tuple[TokenIds, Int64[Tensor, " B"]]:
        """Tokens and class ids (int64) of view `view_indices[b]` of image `indices[b]`."""
        rows = np.asarray(indices, dtype=np.int64)
        views = np.broadcast_to(np.asarray(view_indices, dtype=np.int64), rows.shape)
        for name, given, limit in (("image", rows, len(self)), ("view", views, self.views)):
            if not _inside(given, limit):
                raise IndexError(f"{name} index outside 0…{limit - 1} of the token store {self.folder}")
        layout = self.layout
        ids = np.empty((len(rows), layout.prologue_tokens + layout.visual_tokens), dtype=np.int64)
        labels = np.empty(len(rows), dtype=np.int64)
        homes = np.searchsorted(self._starts, rows, side="right") - 1
        for home in np.unique(homes).tolist():
            wanted = np.flatnonzero(homes == home)
            shard, inside = self._shards[home], rows[wanted] - self._starts[home]
            ids[wanted] = shard["ids"][inside, views[wanted]]
            labels[wanted] = shard["label"][inside]
        prologue, visual = ids[:, : layout.prologue_tokens], ids[:, layout.prologue_tokens :]
        for part, size in ((prologue, layout.prologue_codebook_size), (visual, layout.visual_codebook_size)):
            if not _inside(part, size):
                raise CheckpointError(
                    f"{self.folder} is damaged (it holds an id outside of its codebook 0…{size - 1}): delete this "
                    "folder, and the same `prologue train` command makes it again"
                )
        return TokenIds(torch.from_numpy(prologue), torch.from_numpy(visual)), torch.from_numpy(labels)

    def verify(self) -> None:
        """Read every shard and compare its hash. Raises `CheckpointError` naming the one that differs."""
        for shard, records in zip(self._index.shards, self._shards, strict=True):
            if hashlib.sha256(records.data).hexdigest() != shard.sha256:
                raise CheckpointError(
                    f"{self.folder / shard.file} is damaged (its hash differs from the index): delete it, and {_AGAIN}"
                )
