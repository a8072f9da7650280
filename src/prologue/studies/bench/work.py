"""What a decode step has to read and to multiply, from the sizes of a prior alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from prologue.config import PriorConfig
from prologue.models.sequence import SequenceLayout

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
"""Bytes of a weight by precision. Scales and parts that an int8 prior keeps wider are left out, which understates."""


@dataclass(frozen=True)
class StepWork:
    """Means over the steps of a sequence; what an implementation does beyond it does not count."""

    steps: int
    """Steps that a sequence needs: EOS has only one outcome and needs none of its own."""
    weights: float
    """Elements of the matrices of one step: the blocks', and the head of the step's segment."""
    cached: float
    """Keys and values that one row attends to, in elements."""

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
        """Bytes per step: every weight once, every row's keys and values once."""
        return self.weights * weight_bytes + rows * self.cached * cache_bytes

    def flops(self, rows: int) -> float:
        """Floating-point operations per step: two for each weight and row, two for each key or value element."""
        return 2 * rows * (self.weights + self.cached)


def matrices(config: PriorConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of every matrix of one visual step, in the order they are used."""
    size = config.transformer
    block = [
        (3 * size.width, size.width),
        (size.width, size.width),
        (2 * size.hidden, size.width),
        (size.width, size.hidden),
    ]
    return block * size.depth + [(config.layout.visual_codebook_size, size.width)]
