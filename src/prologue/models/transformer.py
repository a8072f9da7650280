"""Pre-norm transformer blocks of all four networks (METHOD §3), with an optional static key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prologue.config import TransformerConfig
from prologue.models.layers import NEAR_ZERO_STD, Dropout, Linear, RMSNorm
from prologue.models.rope import RopeTable, rotate


class Cache(Protocol):
    """What one block remembers of earlier positions."""

    def attend(
        self, q: Float[Tensor, "B H L d"], k: Float[Tensor, "B H L d"], v: Float[Tensor, "B H L d"], start: int
    ) -> Float[Tensor, "B H L d"]:
        """Causal attention of positions `start…start+L` over themselves and all before them."""
        ...


@dataclass
class LayerCache:
    """Keys and values of one block for a fixed number of positions, written in place: (B, H, T, d)."""

    k: Tensor
    v: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        """Store positions `start…`, then attend to everything up to each of them."""
        stop = start + k.shape[2]
        self.k[:, :, start:stop] = k
        self.v[:, :, start:stop] = v
        return attend(q, self.k[:, :, :stop], self.v[:, :, :stop], q.shape[2] > 1, start)


class Attention(nn.Module):
    """Multi-head attention with QK-norm before the rotation; q, k, v have no bias."""

    def __init__(self, config: TransformerConfig, bias: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)
        self.proj = Linear(config.width, config.width, bias=bias, std=NEAR_ZERO_STD)

    def forward(self, x: Tensor, rope: RopeTable, causal: bool, cache: Cache | None, start: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = rotate(self.q_norm(q), *rope).transpose(1, 2)
        k = rotate(self.k_norm(k), *rope).transpose(1, 2)
        v = v.transpose(1, 2)
        y = attend(q, k, v, causal and q.shape[2] > 1, 0) if cache is None else cache.attend(q, k, v, start)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


SHORT = 512
"""Keys up to which the plain product is the faster attention in half precision on a CPU."""


def attend(
    q: Float[Tensor, "B H L d"], k: Float[Tensor, "B H S d"], v: Float[Tensor, "B H S d"], causal: bool, start: int
) -> Float[Tensor, "B H L d"]:
    """Attention with scale `d^-½`; causal: query `i` sees the keys up to `start + i`."""
    if q.device.type == "cpu" and q.dtype != torch.float32 and q.shape[2] == 1:
        # A step of the decode loop: one pass in fp32 takes half the time of two products in half precision.
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    if q.device.type == "cpu" and q.dtype != torch.float32 and k.shape[2] <= SHORT:
        # The fused CPU kernel converts tile by tile, which costs several times the products of so short a sequence.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            scores = scores.masked_fill(~_visible(q, k, start), -torch.inf)
        out: Tensor = scores.softmax(-1) @ v
        return out
    mask = _visible(q, k, start) if causal and start > 0 else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and start == 0)


def _visible(q: Tensor, k: Tensor, start: int) -> Bool[Tensor, "L S"]:
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(start)


class FeedForward(nn.Module):
    """GEGLU: `fc2(gelu_tanh(value) · gate)` with `gate, value = fc1(x).chunk(2)`."""

    def __init__(self, config: TransformerConfig, bias: bool) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, 2 * config.hidden, bias=bias)
        self.fc2 = Linear(config.hidden, config.width, bias=bias, std=NEAR_ZERO_STD)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.gelu(value, approximate="tanh") * gate)
        return out


class Block(nn.Module):
    """`x + proj(attn(norm1(x)))`, then `x + ffn(norm2(x))`; dropout on both branches."""

    def __init__(self, config: TransformerConfig, bias: bool, dropout: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config, bias)
        self.norm2 = RMSNorm(config.width)
        self.ffn = FeedForward(config, bias)
        self.drop = Dropout(dropout)

    def forward(
        self, x: Tensor, rope: RopeTable, causal: bool = False, cache: Cache | None = None, start: int = 0
    ) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), rope, causal, cache, start))
        out: Tensor = x + self.drop(self.ffn(self.norm2(x)))
        return out


class Transformer(nn.Module):
    """A stack of blocks over rotary positions that are fixed at construction: (B, T, D) → (B, T, D)."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: TransformerConfig, table: RopeTable, *, causal: bool, bias: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.blocks = nn.ModuleList(Block(config, bias, dropout) for _ in range(config.depth))
        # Tables stay fp32 in half-precision models: they are no parameters and `to(dtype)` must not round them.
        self.register_buffer("cos", table[0], persistent=False)
        self.register_buffer("sin", table[1], persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Move the rotary tables with the module, but keep them fp32."""
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.cos = cos.to(self.cos.device)
        self.sin = sin.to(self.sin.device)
        return self

    def forward(
        self, x: Float[Tensor, "B L D"], caches: Sequence[Cache] | None = None, start: int = 0
    ) -> Float[Tensor, "B L D"]:
        """Positions `start…start+L`; with `caches` earlier positions are attended to as well."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # the residual stream stays fp32 under autocast
        stop = start + x.shape[1]
        rope = (self.cos[start:stop], self.sin[start:stop])
        for index, block in enumerate(self.blocks):
            x = block(x, rope, self.causal, caches[index] if caches is not None else None, start)
        return x
