"""The data order is a pure function of (seed, step), whatever the number of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prologue.config import DataConfig
from prologue.data.embedded.shapes import ShapesSet
from prologue.data.order import batch_indices, center_batch, train_batch
from prologue.errors import ConfigError, DataError

SEEDS = st.integers(0, 2**31)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 90), st.integers(1, 4))
def test_each_epoch_holds_each_index_once(seed: int, count: int, batch: int, epochs: int) -> None:
    steps = -(-count * epochs // batch)
    stream = np.concatenate([batch_indices(seed, step, batch, count) for step in range(steps)])
    assert stream.dtype == np.int64
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(0, 10**9), st.integers(1, 60), st.integers(1, 6), st.integers(1, 20))
def test_slices_of_the_processes_make_the_whole_batch(seed: int, step: int, count: int, world: int, share: int) -> None:
    batch = world * share
    parts = [batch_indices(seed, step, batch, count, rank, world) for rank in range(world)]
    assert all(len(part) == share for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), batch_indices(seed, step, batch, count))


def test_epochs_and_seeds_differ() -> None:
    first, second = batch_indices(0, 0, 100, 100), batch_indices(0, 1, 100, 100)
    other = batch_indices(1, 0, 100, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, batch_indices(0, 0, 100, 100))


def test_a_batch_that_processes_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch 10 does not divide among 4 processes"):
        batch_indices(0, 0, 10, 100, 0, 4)
    with pytest.raises(DataError, match="no images"):
        batch_indices(0, 0, 10, 0)


@pytest.mark.parametrize("crop", ["random", "center"])
def test_pictures_do_not_depend_on_the_number_of_processes(crop: str) -> None:
    images = ShapesSet("train", 10, (16, 24), DataConfig(crop=crop))  # type: ignore[arg-type]
    for step in range(3):
        whole = train_batch(images, 7, step, 8)
        assert whole.images.dtype == torch.uint8
        assert whole.images.shape == (8, 3, 16, 24)
        assert whole.labels.tolist() == images.labels[whole.indices].tolist()
        parts = [train_batch(images, 7, step, 8, rank, 4) for rank in range(4)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_an_image_is_seen_differently_in_the_next_epoch() -> None:
    images = ShapesSet("train", 8, (16, 16), DataConfig(crop="random"))
    seen = [
        dict(zip((b := train_batch(images, 0, step, 8)).indices.tolist(), b.images, strict=True)) for step in (0, 1)
    ]
    assert sum(not torch.equal(seen[0][index], seen[1][index]) for index in range(8)) >= 7


def test_center_batch_is_the_center_views() -> None:
    images = ShapesSet("validation", 5, (16, 16), DataConfig())
    batch = center_batch(images, range(1, 4))
    assert batch.indices.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(batch.images[2].numpy(), images.center_view(3))
