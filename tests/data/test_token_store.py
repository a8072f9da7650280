"""The token store: what goes in comes out, after any kill; damage is named."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prologue.data.token_store import StoreShape, TokenStore, TokenStoreWriter
from prologue.errors import CheckpointError, DataError, RunError
from prologue.models.sequence import TokenIds
from prologue.utils import files

P, N, VIEWS, COUNT = 3, 5, 2, 23
LAYOUT = StoreShape(P, N, VIEWS, prologue_codebook_size=1024, visual_codebook_size=16384)


def writer(folder: Path, **changes: Any) -> TokenStoreWriter:
    meta = changes.pop("meta", {"tokenizer": "abc"})
    return TokenStoreWriter(folder, dataclasses.replace(LAYOUT, **changes), meta, shard_images=4)


def tokens(start: int, stop: int, prologue: int = P, views: int = VIEWS) -> tuple[TokenIds, torch.Tensor]:
    """Ids that name their image, view and place."""
    rows = torch.arange(start * views, stop * views)[:, None]
    visual = (rows * 10 + torch.arange(N)) % 16384
    return TokenIds((rows * 3 + torch.arange(prologue)) % 1024, visual), torch.arange(start, stop) % 7


def fill(folder: Path, batch: int, kill_at: int = COUNT, **changes: Any) -> TokenStoreWriter:
    """Append from `done` on, in batches, up to image `kill_at`; the writer is then left as a kill leaves it."""
    target = writer(folder, **changes)
    for start in range(target.done, kill_at, batch):
        target.append(*tokens(start, min(start + batch, kill_at)))
    return target


def check(store: TokenStore) -> None:
    assert len(store) == COUNT
    assert store.views == VIEWS
    order = np.random.default_rng(0).permutation(COUNT)
    views = order % VIEWS
    found, labels = store.get(order, views)
    expected, expected_labels = tokens(0, COUNT)
    rows = torch.from_numpy(order * VIEWS + views)
    assert found.visual.dtype == found.prologue.dtype == labels.dtype == torch.int64
    assert torch.equal(found.prologue, expected.prologue[rows])
    assert torch.equal(found.visual, expected.visual[rows])
    assert torch.equal(labels, expected_labels[torch.from_numpy(order)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, COUNT), max_size=3), st.integers(1, 9))
def test_any_kills_and_batches_give_the_same_store(
    tmp_path_factory: pytest.TempPathFactory, kills: list[int], batch: int
) -> None:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    for kill in sorted(kills):
        fill(folder, batch, kill)
    store = fill(folder, batch).finish()
    check(store)
    store.verify()
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", *(f"shard-{i:05d}.bin" for i in range(6))]


def test_a_finished_store_is_not_written_again(tmp_path: Path) -> None:
    fill(tmp_path, 5).finish()
    again = writer(tmp_path)
    assert again.finished
    assert again.done == COUNT
    check(again.finish())
    with pytest.raises(RunError, match="already complete"):
        again.append(*tokens(0, 1))


def test_another_tokenizer_or_other_sizes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    with pytest.raises(RunError, match=r"tokenizer: 'abc' there, 'xyz' now"):
        writer(tmp_path, meta={"tokenizer": "xyz"})
    with pytest.raises(RunError, match=r"views: 2 there, 1 now"):
        writer(tmp_path, views=1)


def test_ids_take_the_smallest_type(tmp_path: Path) -> None:
    small, large = StoreShape(P, N, VIEWS, 1024, 65536), StoreShape(P, N, VIEWS, 1024, 65537)
    assert (small.record["ids"].base, large.record["ids"].base) == (np.uint16, np.int32)
    target = writer(tmp_path, visual_codebook_size=100_000, views=1, meta=None)
    target.append(TokenIds(torch.zeros(1, P, dtype=torch.int64), torch.full((1, N), 99_999)), torch.tensor([3]))
    found, labels = target.finish().get(np.array([0]), np.array([0]))
    assert found.visual.tolist() == [[99_999] * N]
    assert labels.tolist() == [3]


def test_no_prologue(tmp_path: Path) -> None:
    target = writer(tmp_path, prologue_tokens=0, prologue_codebook_size=0)
    target.append(*tokens(0, 3, prologue=0))
    found, _ = target.finish().get(np.array([2, 0]), np.array([0, 1]))
    assert found.prologue.shape == (2, 0)
    assert torch.equal(found.visual, tokens(0, 3)[0].visual[[4, 1]])


def test_wrong_shapes_and_ids_are_refused(tmp_path: Path) -> None:
    target = writer(tmp_path)
    good, labels = tokens(0, 2)
    with pytest.raises(DataError, match=r"need visual ids \(4, 5\), not \(4, 4\)"):
        target.append(TokenIds(good.prologue, good.visual[:, 1:]), labels)
    with pytest.raises(DataError, match=r"prologue ids must lie in 0…1023"):
        target.append(TokenIds(good.prologue + 1024, good.visual), labels)
    assert len(target.finish()) == 0


def test_indices_outside_are_refused(tmp_path: Path) -> None:
    store = fill(tmp_path, 5).finish()
    for image, view in ((COUNT, 0), (-1, 0), (0, VIEWS)):
        with pytest.raises(IndexError):
            store.get(np.array([image]), np.array([view]))


def test_damage_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 5).finish()
    shard = tmp_path / "shard-00002.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"shard-00002\.bin holds"):
        TokenStore(tmp_path)
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CheckpointError, match=r"shard-00002\.bin is damaged"):
        TokenStore(tmp_path).verify()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"shard-00002\.bin is missing"):
        TokenStore(tmp_path)
    index = tmp_path / "index.json"
    for content in ("{", "[]", json.dumps({"format": 99}), json.dumps({"format": 1})):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            TokenStore(tmp_path)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        TokenStore(tmp_path / "nowhere")


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(tmp_path, 4, 8)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match=r"shard-00002\.bin cannot be written \(No space left on device\): make room"):
        fill(tmp_path, 4)
    monkeypatch.undo()
    assert writer(tmp_path).done == 8
    check(fill(tmp_path, 4).finish())
