"""Background threads that load training batches ahead if loading is slow."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from prologue.data.order import Batch, train_batch
from prologue.data.source import ImageSet

AHEAD = 2
"""Batches that are loaded while the current one is used."""
SLOW_SECONDS = 0.005
"""A batch that takes longer than this starts the threads. Data in memory is faster without threads."""
MOST_THREADS = 16


class Prefetcher:
    """The batches of `images` that one process gets at each step. They do not depend on the batches that are loaded
    ahead.

    Several threads load slices of one batch. `get` raises the errors of these threads, such as a damaged file.
    """

    def __init__(self, images: ImageSet, seed: int, rank: int = 0, world: int = 1, threads: int | None = None) -> None:
        self.images, self.seed, self.rank, self.world = images, seed, rank, world
        self.threads = threads or max(1, min(MOST_THREADS, _cores() // world))
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[tuple[int, int], list[Future[Batch]]] = {}

    def get(self, step: int, batch: int) -> Batch:
        """The share of this process in the batch of `step`."""
        ready = self._waiting.pop((step, batch), None)
        if ready is not None:
            made = _join([part.result() for part in ready])
        else:
            began = time.perf_counter()
            made = train_batch(self.images, self.seed, step, batch, self.rank, self.world)
            if self._pool is None and time.perf_counter() - began > SLOW_SECONDS:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="prologue-images")
        if self._pool is not None:
            self._look_ahead(self._pool, step, batch)
        return made

    def close(self) -> None:
        """Stop the threads and discard their batches."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._waiting.clear()

    def _look_ahead(self, pool: ThreadPoolExecutor, step: int, batch: int) -> None:
        wanted = [(step + ahead, batch) for ahead in range(1, AHEAD + 1)]
        for key in [key for key in self._waiting if key not in wanted]:
            for part in self._waiting.pop(key):
                part.cancel()
        share = batch // self.world
        parts = max(count for count in range(1, self.threads + 1) if share % count == 0)
        for key in wanted:
            if key not in self._waiting:
                # Each slice equals the share of one process if there were `parts` times as many processes.
                self._waiting[key] = [
                    pool.submit(train_batch, self.images, self.seed, *key, self.rank * parts + part, self.world * parts)
                    for part in range(parts)
                ]


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        np.concatenate([part.indices for part in parts]),
    )


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
