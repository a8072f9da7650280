"""One draw from logits: filters, and Gumbel noise that is a function of (image seed, position, id)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prologue.sampling.recipe import Recipe
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
    """`x >> bits` of 64 bits without a sign; a new tensor."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def filter_logits(
    logits: Float[Tensor, "B V"],
    top_k: int | Int[Tensor, "B 1"] | None,
    top_p: float | Float[Tensor, "B 1"] | None,
) -> Float[Tensor, "B V"]:
    """Set the ids that top-k, then top-p, leaves out to −inf; a limit is one number for all rows, or one for each row.

    Top-p keeps the smallest set of the most likely ids whose mass exceeds `top_p`; the id that crosses it is kept.
    """
    if isinstance(top_k, Tensor):
        ordered = logits.sort(dim=-1, descending=True).values
        threshold = ordered.gather(-1, top_k.clamp_max(logits.shape[-1]) - 1)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    elif top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if isinstance(top_p, Tensor) or (top_p is not None and top_p < 1):
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1).cumsum(-1)
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
        dropped = (before > top_p).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def draw(
    logits: Float[Tensor, "B V"],
    noise: Float[Tensor, "B V"],
    temperature: float | Float[Tensor, "B 1"],
    top_k: int | Int[Tensor, "B 1"] | None,
    top_p: float | Float[Tensor, "B 1"] | None,
) -> Int[Tensor, " B"]:
    """Gumbel-max: `argmax(filtered(logits / temperature) + noise)`, an exact draw from the filtered softmax.

    A row with `top_k` 1 takes the first of its largest logits, without noise.
    """
    if isinstance(top_k, int) and top_k == 1:
        return logits.argmax(-1)
    drawn = (filter_logits(logits / temperature, top_k, top_p) + noise).argmax(-1)
    return torch.where(top_k[:, 0] == 1, logits.argmax(-1), drawn) if isinstance(top_k, Tensor) else drawn


@dataclass(frozen=True)
class DrawRule:
    """Temperature and filters of one segment, row by row."""

    temperature: Float[Tensor, "B 1"]
    top_k: int | Int[Tensor, "B 1"] | None
    """One number if all rows have the same limit, because this needs no sort."""
    top_p: Float[Tensor, "B 1"] | None
    filtered: list[bool]
    rows_filtered: Bool[Tensor, " B"]

    @classmethod
    def of(cls, recipes: Sequence[Recipe], segment: str, device: torch.device) -> Self:
        """The rule of a segment, by its name, for one recipe per row."""

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        limits = [recipe.top_k for recipe in recipes]
        top_k: int | Tensor | None = limits[0]
        if len(set(limits)) > 1:
            top_k = column([_NO_LIMIT if limit is None else limit for limit in limits], torch.int64)
        masses = [None if recipe.top_p == 1 else recipe.top_p for recipe in recipes]
        top_p = None
        if any(mass is not None for mass in masses):
            top_p = column([torch.inf if mass is None else mass for mass in masses], torch.float32)
        temperature = column([recipe.segment_temperature(segment) for recipe in recipes], torch.float32)
        filtered = [recipe.filtered for recipe in recipes]
        return cls(temperature, top_k, top_p, filtered, torch.tensor(filtered, device=device))


_NO_LIMIT = 2**62
