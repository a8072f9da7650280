"""Layers that draw their weights from an explicit generator, never from the global one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

INIT_STD = 0.02
NEAR_ZERO_STD = INIT_STD * 1e-5


class Linear(nn.Linear):
    """`nn.Linear` whose weights are set by `initialise`; the constructor draws no random number."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, std: float = INIT_STD) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Do nothing: `initialise` sets the weights."""

    def rows(self, x: Tensor, first: int, last: int | None) -> Tensor:
        """The outputs `first:last`, without the bias."""
        return F.linear(x, self.weight[first:last])

    def initialise(self, generator: torch.Generator) -> None:
        truncated_normal(self.weight, self.std, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Module):
    """A lookup table; `weight` is (rows, width)."""

    def __init__(self, rows: int, width: int, std: float = INIT_STD) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def initialise(self, generator: torch.Generator) -> None:
        truncated_normal(self.weight, self.std, generator)


class Queries(nn.Module):
    """Learned inputs (1, count, width), the same for every image."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, count, width))

    def initialise(self, generator: torch.Generator) -> None:
        truncated_normal(self.weight, INIT_STD, generator)


class RMSNorm(nn.Module):
    """`x / max(‖x‖₂, 1e-12) · √D · (1 + w)` over the last dimension, computed in fp32; `w` starts at 0 (METHOD §3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = x.float()
        # Clamping the square gives the same result for ‖x‖ > 1e-12, saves a pass, and is smooth at 0.
        inverse: Tensor = torch.linalg.vecdot(wide, wide).clamp_min(1e-24).rsqrt()
        return (wide * (inverse * self.scale)[..., None] * (1 + self.weight.float())).to(x.dtype)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.weight)


class Dropout(nn.Module):
    """Dropout that draws from `generator`, which the training step sets."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep / (1 - self.p)


def truncated_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with a normal distribution of this std, truncated at ±2."""
    nn.init.trunc_normal_(weight, std=std, generator=generator)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Call `initialise` of every submodule that has it, in the order of registration."""
    for child in module.modules():
        draw = getattr(child, "initialise", None)
        if child is not module and callable(draw):
            draw(generator)


def head_in_fp32(x: Tensor, norm: RMSNorm, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Output norm and linear layer in the number format of the weights; the result is fp32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(norm(x.to(weight.dtype)), weight, bias).float()
