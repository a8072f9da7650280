"""Batches made ahead are those made when asked for; errors and threads end where they should."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from prologue.data.order import train_batch
from prologue.errors import DataError
from prologue.training import prefetch
from prologue.training.prefetch import Prefetcher


class Slow:
    """Twenty images that take a while, one of them damaged if asked."""

    size = (2, 3)
    labels = np.arange(20, dtype=np.int64)
    views = 1

    def __init__(self, seconds: float = 0.002, damaged: int | None = None) -> None:
        self.seconds, self.damaged, self.made, self.threads = seconds, damaged, 0, set()

    def __len__(self) -> int:
        return 20

    def train_view(self, index: int, rng: np.random.Generator) -> np.ndarray:
        time.sleep(self.seconds)
        self.made += 1
        self.threads.add(threading.current_thread().name)
        if index == self.damaged:
            raise DataError(f"image {index} is damaged")
        return np.full((3, 2, 3), index, dtype=np.uint8) + rng.integers(0, 9, (3, 2, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a batch is slow must not depend on what else this machine does."""
    monkeypatch.setattr(prefetch, "SLOW_SECONDS", 0.0)


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prologue-images" in thread.name]


@pytest.mark.parametrize(("rank", "world", "threads"), [(0, 1, 3), (1, 2, 4), (0, 1, 1)])
def test_batches_are_those_of_the_sampler(rank: int, world: int, threads: int) -> None:
    images = Slow()
    batches = Prefetcher(images, 5, rank, world, threads)
    steps = [0, 1, 2, 3, 4, 9, 10, 11, 3, 4]  # also as the start of the codebook reads ahead and returns
    taken = [batches.get(step, 8) for step in steps]
    batches.close()
    assert len(images.threads) > 1
    for step, batch in zip(steps, taken, strict=True):
        expected = train_batch(Slow(0), 5, step, 8, rank, world)
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
        assert np.array_equal(batch.indices, expected.indices)
    assert names() == []


def test_quick_images_are_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "SLOW_SECONDS", 3600.0)
    images = Slow(0)
    batches = Prefetcher(images, 5)
    for step in range(4):
        batches.get(step, 4)
    assert images.threads == {"MainThread"}
    assert images.made == 16


def test_what_is_ahead_is_used() -> None:
    images = Slow(0.003)
    batches = Prefetcher(images, 5, threads=2)
    for step in range(4):
        batches.get(step, 4)
    batches.close()
    assert images.made <= 6 * 4


def test_a_damaged_image_is_an_error_of_its_own_step() -> None:
    images = Slow()
    place = next(step for step in range(5) if 13 in train_batch(Slow(0), 5, step, 4).labels)
    images.damaged = 13
    batches = Prefetcher(images, 5, threads=2)
    for step in range(place):
        batches.get(step, 4)
    with pytest.raises(DataError, match="image 13 is damaged"):
        batches.get(place, 4)
    batches.close()
    assert names() == []
