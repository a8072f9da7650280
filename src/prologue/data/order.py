"""The data order. It is a pure function of (seed, step), also with several processes and after a resume."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from prologue.data.source import ImageSet
from prologue.errors import ConfigError, DataError
from prologue.utils.rng import numpy_stream


class Batch(NamedTuple):
    """Images (B, 3, H, W) uint8, class ids (B,) int64, and the indices (B,) of the images in their set."""

    images: UInt8[Tensor, "B 3 H W"]
    labels: Int64[Tensor, " B"]
    indices: Int64[np.ndarray, " B"]


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    order = numpy_stream(seed, "order", epoch).permutation(count).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def batch_positions(step: int, batch: int, rank: int = 0, world: int = 1) -> range:
    """The slice of the global batch that `rank` reads at `step`, as positions in the endless stream of epochs.

    Raises `ConfigError` if the processes do not divide the batch.
    """
    if batch % world:
        raise ConfigError(
            f"batch {batch} does not divide among {world} processes: choose a batch that is a multiple of {world}"
        )
    if batch < 1 or step < 0 or not 0 <= rank < world:
        raise ConfigError(f"no batch of {batch} at step {step} for process {rank} of {world}")
    share = batch // world
    start = step * batch + rank * share
    return range(start, start + share)


def batch_indices(
    seed: int, step: int, batch: int, count: int, rank: int = 0, world: int = 1
) -> Int64[np.ndarray, " batch/world"]:
    """Indices of the images that `rank` reads at `step`. Each epoch is a new permutation of `count` images.

    A batch may cross the end of an epoch, and may be larger than `count`. Raises `ConfigError` as `batch_positions`
    does, and `DataError` if there are no images.
    """
    if count < 1:
        raise DataError("there are no images to train on")
    epochs, places = np.divmod(np.asarray(batch_positions(step, batch, rank, world), dtype=np.int64), count)
    read = range(int(epochs[0]), int(epochs[-1]) + 1)
    return np.concatenate([_epoch_order(seed, epoch, count)[places[epochs == epoch]] for epoch in read])


def train_batch(images: ImageSet, seed: int, step: int, batch: int, rank: int = 0, world: int = 1) -> Batch:
    """The training views of `batch_indices`, on the CPU.

    Crop and flip of an image depend on its position in the stream of all processes, so one process with 8 images and
    two with 4 see the same pictures.
    """
    indices = batch_indices(seed, step, batch, len(images), rank, world)
    positions = batch_positions(step, batch, rank, world)
    pictures = np.empty((len(indices), 3, *images.size), dtype=np.uint8)
    for row, (position, index) in enumerate(zip(positions, indices.tolist(), strict=True)):
        pictures[row] = images.train_view(index, numpy_stream(seed, "crop", position))
    return Batch(torch.from_numpy(pictures), torch.from_numpy(images.labels[indices]), indices)


def center_batch(images: ImageSet, indices: Int64[np.ndarray, " B"] | range) -> Batch:
    """The center views of the images at `indices`, on the CPU."""
    rows = np.asarray(indices, dtype=np.int64)
    pictures = np.empty((len(rows), 3, *images.size), dtype=np.uint8)
    for row, index in enumerate(rows.tolist()):
        pictures[row] = images.center_view(index)
    return Batch(torch.from_numpy(pictures), torch.from_numpy(images.labels[rows]), rows)
