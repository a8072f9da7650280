"""The pre-norm transformer of all networks (METHOD §3), with an optional key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prologue.config import TransformerConfig
from prologue.models.layers import NEAR_ZERO_STD, Dropout, Linear, RMSNorm
from prologue.models.rope import RopeTable, rotate
from prologue.utils.private_api import Fp32Buffers


class Cache(Protocol):
    """Keys and values of one block at the positions before those of the pass."""

    def attend(
        self, q: Float[Tensor, "B H L d"], k: Float[Tensor, "B H L d"], v: Float[Tensor, "B H L d"]
    ) -> Float[Tensor, "B H L d"]:
        """Causal attention of the pass's positions over themselves and all earlier ones."""
        ...


@dataclass
class LayerCache:
    """Keys and values of one block, (B, H, T, d). A pass writes its keys and values in place, starting at position
    `start`."""

    k: Tensor
    v: Tensor
    start: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new keys and values. Each query then attends to all positions up to its own."""
        stop = self.start + k.shape[2]
        self.k[:, :, self.start : stop] = k
        self.v[:, :, self.start : stop] = v
        return attend(q, self.k[:, :, :stop], self.v[:, :, :stop], causal=True)


class Attention(nn.Module):
    """Multi-head attention with QK-norm before the rotation; q, k and v have no bias."""

    def __init__(self, config: TransformerConfig, bias: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)
        self.proj = Linear(config.width, config.width, bias=bias, std=NEAR_ZERO_STD)

    def forward(self, x: Tensor, rope: RopeTable, causal: bool, cache: Cache | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = rotate(self.q_norm(q), *rope).transpose(1, 2)
        k = rotate(self.k_norm(k), *rope).transpose(1, 2)
        v = v.transpose(1, 2)
        y = attend(q, k, v, causal) if cache is None else cache.attend(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


SHORT = 512
"""Largest number of keys for which two products replace the fused kernel, in half precision on a CPU.

The fused kernel converts tile by tile. With it, decoding 64 guided images in bf16 takes 1.3 times as long (width 160,
73 positions), and attention over 256 keys 2.4 times (one thread, ratios within one process).
"""


def attend(
    q: Float[Tensor, "B H L d"], k: Float[Tensor, "B H S d"], v: Float[Tensor, "B H S d"], causal: bool
) -> Float[Tensor, "B H L d"]:
    """Attention with scale `d^-½`; with `causal`, the queries are the last L of the S positions."""
    causal = causal and q.shape[2] > 1
    square = q.shape[2] == k.shape[2]
    if q.device.type == "cpu" and q.dtype != torch.float32 and k.shape[2] <= SHORT:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            scores = scores.masked_fill(~_visible(q, k), -torch.inf)
        out: Tensor = scores.softmax(-1) @ v
        return out
    mask = _visible(q, k) if causal and not square else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and square)


def _visible(q: Tensor, k: Tensor) -> Bool[Tensor, "L S"]:
    length, total = q.shape[2], k.shape[2]
    return torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)


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

    def forward(self, x: Tensor, rope: RopeTable, causal: bool = False, cache: Cache | None = None) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), rope, causal, cache))
        out: Tensor = x + self.drop(self.ffn(self.norm2(x)))
        return out


class Transformer(Fp32Buffers):
    """A stack of blocks with a fixed table of rotary positions: (B, L, D) → (B, L, D)."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: TransformerConfig, table: RopeTable, *, causal: bool, bias: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.blocks = nn.ModuleList(Block(config, bias, dropout) for _ in range(config.depth))
        # The tables stay fp32 in half-precision models.
        self.register_buffer("cos", table[0], persistent=False)
        self.register_buffer("sin", table[1], persistent=False)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        caches: Sequence[Cache] | None = None,
        positions: slice | Int[Tensor, " L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Block outputs at `positions`, by default the first L; `caches` hold the keys and values of earlier ones."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # the residual stream stays fp32 under autocast
        positions = slice(x.shape[1]) if positions is None else positions
        rope = (self.cos[positions], self.sin[positions])
        for index, block in enumerate(self.blocks):
            x = block(x, rope, self.causal, caches[index] if caches is not None else None)
        return x
