"""Assigns images to chunks of one size, chunks to shards, and chunks to processes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """`count` images; image `i` belongs to chunk `i // batch`, for any number of processes.

    A shard is an archive of whole chunks with at least `shard_size` images; up to `shard_size` images are one shard.
    """

    count: int
    batch: int
    shard_size: int

    @property
    def chunks(self) -> int:
        return math.ceil(self.count / self.batch)

    def images(self, chunk: int) -> range:
        """The images of a chunk."""
        return range(chunk * self.batch, min(self.count, (chunk + 1) * self.batch))

    def share(self, rank: int, world: int) -> range:
        """The chunks of process `rank` of `world`."""
        return range(rank, self.chunks, world)

    @property
    def _chunks_per_shard(self) -> int:
        return self.chunks if self.count <= self.shard_size else math.ceil(self.shard_size / self.batch)

    @property
    def shards(self) -> int:
        return math.ceil(self.chunks / self._chunks_per_shard)

    def shard_of(self, chunk: int) -> int:
        """The shard that holds a chunk."""
        return chunk // self._chunks_per_shard

    def shard_chunks(self, shard: int) -> range:
        """The chunks of a shard, in order."""
        first = shard * self._chunks_per_shard
        return range(first, min(self.chunks, first + self._chunks_per_shard))

    def shard_images(self, shard: int) -> range:
        """The images of a shard."""
        chunks = self.shard_chunks(shard)
        return range(self.images(chunks[0]).start, self.images(chunks[-1]).stop)

    def shard_name(self, shard: int) -> str:
        """`samples.npz`, or `samples-00003.npz` if there are several."""
        return "samples.npz" if self.shards == 1 else f"samples-{shard:05d}.npz"

    def place(self, image: int) -> tuple[str, int]:
        """The file name of an image's shard, and the index of the image in it."""
        shard = self.shard_of(image // self.batch)
        return self.shard_name(shard), image - self.shard_images(shard).start
