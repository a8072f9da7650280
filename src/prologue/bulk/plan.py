"""Which image is made where: chunks of one shape, shards of whole chunks, processes in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """`count` images; image `i` belongs to chunk `i // batch`, whoever computes it.

    A shard is an archive of whole chunks, `shard_size` images or a few more; all images are one shard where they fit.
    """

    count: int
    batch: int
    shard_size: int

    @property
    def chunks(self) -> int:
        return math.ceil(self.count / self.batch)

    def images(self, chunk: int) -> range:
        """The numbers of a chunk's images."""
        return range(chunk * self.batch, min(self.count, (chunk + 1) * self.batch))

    def share(self, rank: int, world: int) -> range:
        """The chunks that process `rank` of `world` computes."""
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
        """The numbers of a shard's images."""
        chunks = self.shard_chunks(shard)
        return range(self.images(chunks[0]).start, self.images(chunks[-1]).stop)

    def shard_name(self, shard: int) -> str:
        """`samples.npz`, or `samples-00003.npz` where there are several."""
        return "samples.npz" if self.shards == 1 else f"samples-{shard:05d}.npz"

    def place(self, image: int) -> tuple[str, int]:
        """The shard's file name and the image's index in it."""
        shard = self.shard_of(image // self.batch)
        return self.shard_name(shard), image - self.shard_images(shard).start
