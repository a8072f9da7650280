"""Finite scalar quantization (Mentzer et al., arXiv 2309.15505): a grid in place of a codebook."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prologue.errors import ConfigError
from prologue.models.layers import Linear
from prologue.models.quantizers.base import Quantized, Quantizer


class FSQ(Quantizer):
    """Bounds each of d numbers and rounds it to one of its `levels`; codes lie in [-1, 1]. It has no loss.

    Args:
        levels: numbers of levels, 3 or more, one for each of the `code_dim` dimensions. Their product is the number of
            ids.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, width: int, code_dim: int, size: int, levels: Sequence[int]) -> None:
        super().__init__()
        if len(levels) != code_dim or min(levels) < 3:
            raise ConfigError(
                f"the quantizer 'fsq' needs levels of 3 or more for each of the {code_dim} dimensions of "
                f"tokenizer.code_dim, not {list(levels)}"
            )
        self.proj = Linear(width, code_dim)
        self.count = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(code_dim)]), persistent=False)

    @property
    def size(self) -> int:
        return self.count

    def forward(self, h: Float[Tensor, "B T D"]) -> Quantized:
        z = self._bounded(h)
        digits = z.detach().round()
        codes = z + (digits - z).detach()
        middle = self.levels // 2
        return Quantized(self._ids(digits), z / middle, codes / middle, None, z.new_zeros(()))

    def encode(self, h: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
        return self._ids(self._bounded(h).round())

    def codes(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        middle = self.levels // 2
        return (ids[..., None] // self.basis % self.levels - middle) / middle

    def _bounded(self, h: Tensor) -> Float[Tensor, "B T d"]:
        """Numbers that round to `levels` integers, which start at `-(levels // 2)`."""
        with torch.autocast(h.device.type, enabled=False):
            x = F.linear(h.float(), self.proj.weight.float(), self.proj.bias.float())
            reach = (self.levels - 1) * (1 + 1e-3) / 2
            offset = (self.levels + 1) % 2 / 2
            return torch.tanh(x + torch.atanh(offset / reach)) * reach - offset

    def _ids(self, digits: Tensor) -> Int[Tensor, "B T"]:
        return ((digits.long() + self.levels // 2) * self.basis).sum(-1)
