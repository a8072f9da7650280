"""The functions that may be compiled: one decode step, the head with guidance, the draw, and the decoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from prologue.models.prior import Prior
from prologue.models.sequence import Segment
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.sampling.draw import gumbel_noise

GRAPHS: list[type[Graph]] = []
"""Every kind of graph. The compiler gets nothing else."""


class Graph(nn.Module):
    """A function of tensors that compiles without breaks: it branches on no tensor's value and writes to no tensor."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")
    """Devices on which this graph is compiled."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        GRAPHS.append(cls)


class ReadOnlyCache:
    """Earlier keys and values of one block, which a graph reads; it keeps the new ones in `k` and `v`.

    A graph must not write to the cache, so the shared `attend` would need a copy with the new keys and values. On a CPU
    the copy costs nothing: 0.99 of the time with 32 guided images, width 384 and 273 positions, 0.84 with 4 images,
    width 160 and 73 positions. On a GPU, where steps wait for the cache, it would triple the cache's memory traffic.
    """

    def __init__(self, keys: Tensor, values: Tensor, visible: Bool[Tensor, " S"]) -> None:
        self.keys, self.values, self.visible = keys, values, visible
        self.k, self.v = keys, values

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One query over the visible slots and itself: (B, H, 1, d), products and sums in fp32."""
        self.k, self.v = k, v
        wide = q.float() * q.shape[-1] ** -0.5
        past = (wide * self.keys.float()).sum(-1).masked_fill(~self.visible, -torch.inf)
        own = (wide * k.float()).sum(-1)
        top = torch.maximum(past.amax(-1, keepdim=True), own)
        past, own = (past - top).exp(), (own - top).exp()
        mixed = (past[..., None] * self.values.float()).sum(-2, keepdim=True) + own[..., None] * v.float()
        out: Tensor = mixed / (past.sum(-1, keepdim=True) + own)[..., None]
        return out.to(q.dtype)


class Step(Graph):
    """Ids at one input position → the blocks' outputs there, and the keys and values to store."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self,
        ids: Int[Tensor, " R"],
        position: Int[Tensor, " 1"],
        past: Float[Tensor, "2 depth R heads S d"],
    ) -> tuple[Float[Tensor, "R 1 D"], Float[Tensor, "2 depth R heads 1 d"]]:
        """`past` has at least two slots; those from `position` on are masked."""
        visible = torch.arange(past.shape[4], device=past.device) < position
        caches = [ReadOnlyCache(past[0, index], past[1, index], visible) for index in range(past.shape[1])]
        hidden = self.prior.hidden(self.prior.embed(ids[:, None]), caches, position)
        new = torch.stack([torch.stack([cache.k for cache in caches]), torch.stack([cache.v for cache in caches])])
        return hidden, new


class Logits(Graph):
    """Blocks' outputs → logits of one segment, fp32; with guidance the rows are the classes', then the null class's."""

    def __init__(self, prior: Prior, segment: Segment) -> None:
        super().__init__()
        self.prior = prior
        self.first_id, self.last_id = segment.first_id, segment.last_id

    def forward(
        self, hidden: Float[Tensor, "R 1 D"], weights: Float[Tensor, "B 2"] | None
    ) -> tuple[Float[Tensor, "B V"], Bool[Tensor, ""]]:
        """`weights` of the class's and the null class's logits, None without guidance; and whether all are finite."""
        logits = self.prior.logits(hidden, self.first_id, self.last_id)[:, 0]
        if weights is not None:
            conditional, null = logits.chunk(2)
            logits = weights[:, :1] * conditional + weights[:, 1:] * null
        return logits, torch.isfinite(logits).all()


class Draw(Graph):
    """Gumbel-max over all ids of a segment, as ids of the prior's vocabulary."""

    devices = ("cuda",)
    """Compiling saves nothing on a CPU, and the CPU's compiler rejects the noise's 64-bit products, which overflow."""

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self.first_id, self.last_id = segment.first_id, segment.last_id

    def forward(
        self,
        logits: Float[Tensor, "B V"],
        keys: Int[Tensor, " B"],
        position: Int[Tensor, ""],
        temperature: Float[Tensor, "B 1"],
    ) -> Int[Tensor, " B"]:
        noise = gumbel_noise(keys, position, self.first_id, self.last_id)
        return self.first_id + (logits / temperature + noise).argmax(-1)


class Pixels(Graph):
    """Checked visual ids → uint8 images."""

    devices = ("cuda",)
    """On a CPU the decoder's matrix products take nearly all the time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, visual: Int[Tensor, "B N"]) -> UInt8[Tensor, "B 3 H W"]:
        return to_uint8(self.tokenizer.decode_known(visual))
