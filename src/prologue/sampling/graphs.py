"""All that may be compiled: embedding and blocks of one position, head with guidance, draw, decoder."""

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
"""Every kind of graph; nothing else is given to a compiler."""


class Graph(nn.Module):
    """A function of tensors that a compiler takes whole: it branches on no tensor's value and writes to none."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")
    """Where compiling it is of use."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        GRAPHS.append(cls)


class Past:
    """Earlier keys and values of one block, read only; what the step adds is kept in `k` and `v`.

    Nothing is written inside the graph, so that it has no side effects to order and no cache to copy.
    """

    def __init__(self, keys: Tensor, values: Tensor, visible: Bool[Tensor, " S"]) -> None:
        self.keys, self.values, self.visible = keys, values, visible
        self.k, self.v = keys, values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
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
    """Ids at one input position → the blocks' outputs there, and the keys and values to remember."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self,
        ids: Int[Tensor, " R"],
        position: Int[Tensor, " 1"],
        past: Float[Tensor, "2 depth R heads S d"],
    ) -> tuple[Float[Tensor, "R 1 D"], Float[Tensor, "2 depth R heads 1 d"]]:
        """`past` holds at least two slots, those from `position` on are not looked at."""
        transformer = self.prior.transformer
        rope = (transformer.cos.index_select(0, position), transformer.sin.index_select(0, position))
        visible = torch.arange(past.shape[4], device=past.device) < position
        x = self.prior.embed(ids[:, None])
        new = []
        for index, block in enumerate(transformer.blocks):
            cache = Past(past[0, index], past[1, index], visible)
            x = block(x, rope, True, cache, 0)
            new.append((cache.k, cache.v))
        return x, torch.stack([torch.stack(part) for part in zip(*new, strict=True)])


class Logits(Graph):
    """Blocks' outputs → logits of one segment, fp32, guided where the rows are the classes' and then the null's."""

    def __init__(self, prior: Prior, segment: Segment) -> None:
        super().__init__()
        self.prior = prior
        self.first_id, self.last_id = segment.first_id, segment.last_id

    def forward(
        self, hidden: Float[Tensor, "R 1 D"], scale: Float[Tensor, ""] | float | None
    ) -> tuple[Float[Tensor, "B V"], Bool[Tensor, ""]]:
        """`scale` None: unguided. The flag says whether all logits are finite."""
        logits = self.prior.logits(hidden, self.first_id, self.last_id)[:, 0]
        if scale is not None:
            conditional, null = logits.chunk(2)
            logits = scale * conditional + (1 - scale) * null
        return logits, torch.isfinite(logits).all()


class Draw(Graph):
    """Gumbel-max over all ids of a segment, as ids of the prior's vocabulary."""

    devices = ("cuda",)
    """On a CPU the compiler gains nothing here, and does not take the noise's wrapping 64-bit products."""

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self.first_id, self.last_id = segment.first_id, segment.last_id

    def forward(
        self,
        logits: Float[Tensor, "B V"],
        keys: Int[Tensor, " B"],
        position: Int[Tensor, ""],
        temperature: Float[Tensor, ""],
    ) -> Int[Tensor, " B"]:
        noise = gumbel_noise(keys, position, self.first_id, self.last_id)
        return self.first_id + (logits / temperature + noise).argmax(-1)


class Pixels(Graph):
    """Visual ids, known to be right, → uint8 images."""

    devices = ("cuda",)
    """On a CPU the decoder's products take nearly all the time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, visual: Int[Tensor, "B N"]) -> UInt8[Tensor, "B 3 H W"]:
        return to_uint8(self.tokenizer.decode_known(visual))
