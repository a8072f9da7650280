"""The sampling loop of the authors with the modules of this package: the baseline of `prologue bench sampling`.

It is eager and in fp32, and the cache grows by concatenation. Every position computes the head over the whole
vocabulary and both rows of a guided image, also at EOS. Ids are drawn with softmax and `torch.multinomial`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from prologue.models.prior import Prior
from prologue.models.rope import RopeTable, rotate
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.models.transformer import Attention, Block
from prologue.sampling.guidance import Guidance
from prologue.utils.rng import torch_stream

Cached = tuple[Tensor, Tensor]
"""Keys and values of one block, each (B, H, T, d)."""


@torch.inference_mode()
def baseline_sequences(
    prior: Prior,
    class_ids: Int[Tensor, " B"],
    guidance: Guidance,
    seed: int = 0,
    *,
    greedy: bool = False,
    positions: int | None = None,
) -> Int[Tensor, "B T"]:
    """Ids of the prior's vocabulary, with EOS, sampled at temperature 1.

    `greedy` takes the most likely id. `positions` is the number of positions to sample. The default is all.
    """
    layout = prior.layout
    scales = guidance.scales(layout)
    rows = torch.cat([class_ids, torch.full_like(class_ids, prior.null_class)]) if guidance.active else class_ids
    allowed = layout.allowed(class_ids.device)
    generator = torch_stream(seed, "baseline", device=class_ids.device)
    caches: list[Cached | None] = [None] * len(prior.transformer.blocks)
    x, targets = prior.begin(rows), []
    for step in range(layout.length if positions is None else min(positions, layout.length)):
        logits = prior.logits(_step(prior, x, caches, step))[:, 0]
        if guidance.active:
            conditional, null = logits.chunk(2)
            logits = scales[step] * conditional + (1 - scales[step]) * null
        logits = logits.masked_fill(~allowed[step], -torch.inf)
        if greedy:
            ids = logits.argmax(-1, keepdim=True)
        else:
            ids = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        targets.append(ids)
        x = prior.embed(ids.repeat(len(rows) // len(ids), 1))
    return torch.cat(targets, dim=1)


def _step(prior: Prior, x: Float[Tensor, "B 1 D"], caches: list[Cached | None], step: int) -> Float[Tensor, "B 1 D"]:
    """Block outputs at input position `step`. `caches` grow by one position."""
    transformer = prior.transformer
    rope = (transformer.cos[step : step + 1], transformer.sin[step : step + 1])
    for index, block in enumerate(transformer.blocks):
        assert isinstance(block, Block)
        y, caches[index] = _attention(block.attn, block.norm1(x), rope, caches[index])
        x = x + y
        x = x + block.ffn(block.norm2(x))
    return x


def _attention(attention: Attention, x: Tensor, rope: RopeTable, cached: Cached | None) -> tuple[Tensor, Cached]:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).unbind(2)
    q = rotate(attention.q_norm(q), *rope).transpose(1, 2)
    k = rotate(attention.k_norm(k), *rope).transpose(1, 2)
    v = v.transpose(1, 2)
    if cached is not None:
        k, v = torch.cat([cached[0], k], dim=2), torch.cat([cached[1], v], dim=2)
    y = F.scaled_dot_product_attention(q, k, v)
    return attention.proj(y.transpose(1, 2).flatten(2)), (k, v)


@torch.inference_mode()
def baseline_images(tokenizer: Tokenizer, visual: Int[Tensor, "B N"]) -> UInt8[Tensor, "B 3 H W"]:
    """Pixels of visual ids on the CPU. The whole batch is decoded in one eager fp32 pass."""
    return to_uint8(tokenizer.decode(visual)).cpu()
