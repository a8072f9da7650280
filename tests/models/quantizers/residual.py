"""A residual quantizer: two ids for each position, for visual and prologue tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prologue.models.quantizers import PrologueQuantizer, Quantized, Quantizer, VisualQuantizer

IDS = 2


class Residual(Quantizer):
    """Two cosine quantizers, the second for what the first leaves; with a one-hot, for the prologue."""

    ids_per_position = IDS

    def __init__(self, width: int, code_dim: int, size: int, ids_per_position: int = 1, temperature: float = 0.1):
        super().__init__()
        self.input = VisualQuantizer(width, code_dim, size)
        self.stages = nn.ModuleList(PrologueQuantizer(code_dim, code_dim, size, temperature) for _ in range(IDS))

    @property
    def size(self) -> int:
        return self.input.size

    def forward(self, h: Tensor) -> Quantized:
        z = self.input.project(h)
        left, found = z, []
        for stage in self.stages:
            found.append(stage(left))
            left = left - found[-1].codes
        q = sum(each.codes for each in found)
        ids = torch.stack([each.ids for each in found], dim=-1).flatten(1)
        one_hot = torch.stack([each.one_hot for each in found], dim=2).flatten(1, 2)
        return Quantized(ids, z, z + (q - z).detach(), one_hot, F.mse_loss(q, z.detach()) + F.mse_loss(z, q.detach()))

    def encode(self, h: Tensor) -> Tensor:
        return self(h).ids

    def codes(self, ids: Tensor) -> Tensor:
        levels = ids.unflatten(1, (-1, IDS)).unbind(-1)
        return sum(stage.codes(level) for stage, level in zip(self.stages, levels, strict=True))
