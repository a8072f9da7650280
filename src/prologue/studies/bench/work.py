"""What a decode step has to read and to multiply, from the sizes of a prior alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from prologue.config import PriorConfig
from prologue.models.sequence import SequenceLayout

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
"""Bytes per weight. The scales of int8, and the parts that it keeps in higher precision, are excluded."""


@dataclass(frozen=True)
class StepWork:
    """Necessary work per step, averaged over a sequence."""

    steps: int
    """Steps per sequence. EOS is certain and needs no step."""
    weights: float
    """Elements of the matrices of one step: those of the blocks, and the head of the segment."""
    cached: float
    """Elements of the keys and values that one row attends to."""

    @classmethod
    def of(cls, config: PriorConfig) -> Self:
        layout = SequenceLayout(config.layout)
        drawn = [segment for segment in layout.segments if not segment.forced]
        steps = sum(segment.stop - segment.start for segment in drawn)
        ids = sum((segment.stop - segment.start) * (segment.last_id - segment.first_id) for segment in drawn)
        size = config.transformer
        blocks = size.depth * (4 * size.width**2 + 3 * size.width * size.hidden)
        cached = 2 * size.width * size.depth * (layout.length + 1) / 2
        return cls(steps, blocks + ids / steps * size.width, cached)

    def bytes_read(self, rows: int, weight_bytes: float, cache_bytes: float) -> float:
        """Bytes per step: all weights once, and the keys and values of all rows once."""
        return self.weights * weight_bytes + rows * self.cached * cache_bytes

    def flops(self, rows: int) -> float:
        """FLOP per step: two per weight and row, and two per element of keys and values and row."""
        return 2 * rows * (self.weights + self.cached)


def matrices(config: PriorConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of all matrices of one visual step, in their order."""
    size = config.transformer
    block = [
        (3 * size.width, size.width),
        (size.width, size.width),
        (2 * size.hidden, size.width),
        (size.width, size.hidden),
    ]
    return block * size.depth + [(config.layout.visual_codebook_size, size.width)]
