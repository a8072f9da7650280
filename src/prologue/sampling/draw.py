"""One draw from logits: filters, and Gumbel noise that depends on nothing but (image seed, position, id)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prologue.utils.rng import derive_seed

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def image_keys(seeds: list[int], device: torch.device | str = "cpu") -> Int[Tensor, " B"]:
    """Noise key of each image from its seed."""
    return torch.tensor([derive_seed(seed, "sampling") for seed in seeds], dtype=torch.int64, device=device)


def gumbel_noise(
    keys: Int[Tensor, " B"], position: int | Int[Tensor, ""], first_id: int, last_id: int
) -> Float[Tensor, "B V"]:
    """Standard Gumbel noise of the ids `first_id:last_id` at a target position, fp32.

    A counter-based hash (the SplitMix64 finaliser) of (key, position, id) gives 40 random bits `k`; the noise is
    `−log(−log1p(−w))`, `w = (k + ½)/2⁴⁰`, which keeps full precision in the upper tail, where the argmax is decided.
    """
    ids = torch.arange(first_id, last_id, dtype=torch.int64, device=keys.device)
    row = _mix(keys + _GOLDEN * (torch.zeros_like(keys) + (position + 1)))
    bits = _mix(row[:, None] + _GOLDEN * (ids + 1))
    w = _unsigned_shift(bits, 24).float().add_(0.5).mul_(2.0**-40)
    return w.neg_().log1p_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    x = _unsigned_shift(x, 30).bitwise_xor_(x).mul_(_MIX_1)
    x = _unsigned_shift(x, 27).bitwise_xor_(x).mul_(_MIX_2)
    return _unsigned_shift(x, 31).bitwise_xor_(x)


def _unsigned_shift(x: Tensor, bits: int) -> Tensor:
    """`x >> bits` of a 64-bit number whose sign is a bit like the others; a new tensor."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def filter_logits(logits: Float[Tensor, "B V"], top_k: int | None, top_p: float | None) -> Float[Tensor, "B V"]:
    """Set what top-k, then top-p, leaves out to −inf.

    Top-p keeps the smallest set of the most likely ids whose mass exceeds `top_p`; the id that crosses it is kept.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1).cumsum(-1)
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
        dropped = (before > top_p).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def draw(
    logits: Float[Tensor, "B V"],
    noise: Float[Tensor, "B V"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Int[Tensor, " B"]:
    """Gumbel-max: `argmax(filtered(logits / temperature) + noise)`, an exact draw from the filtered softmax."""
    if top_k == 1:
        return logits.argmax(-1)
    return (filter_logits(logits / temperature, top_k, top_p) + noise).argmax(-1)
