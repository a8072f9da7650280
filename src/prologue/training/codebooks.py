"""Codebook health: usage and perplexity, warnings of a collapse, and new rows from the quantizers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prologue.models.quantizers import Rows
from prologue.training.learner import Learner

COLLAPSED_USAGE = 0.05
COLLAPSED_NATS = 0.1


class Usage:
    """Counts of ids per position, (P, K) with `positions` P or (1, K) over all positions."""

    def __init__(self, positions: int, size: int, device: torch.device) -> None:
        self.counts = torch.zeros(positions, size, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, ids: Int[Tensor, "B T"]) -> None:
        positions, size = self.counts.shape
        offset = torch.arange(positions, device=ids.device) * size
        places = ids.flatten() if positions == 1 else (ids + offset).flatten()
        # `bincount` would wait for the device to learn the largest id.
        self.counts.view(-1).scatter_add_(0, places, torch.ones_like(places))

    def reset(self) -> None:
        self.counts.zero_()

    @property
    def used(self) -> float:
        """Part of the codebook that occurs at any position."""
        return float((self.counts.sum(0) > 0).float().mean())

    def entropies(self) -> Float[Tensor, " P"]:
        """Entropy of the ids' marginal at each position, nats."""
        counts = self.counts.cpu()  # float64, which Apple's GPUs lack
        p = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
        entropies: Tensor = -torch.special.xlogy(p, p).sum(1)
        return entropies

    def perplexity(self) -> float:
        """Exponential of the entropy of all positions' ids together."""
        total = self.counts.sum(0).cpu().double()
        p = total / total.sum().clamp_min(1)
        return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def apply_rows(learner: Learner, quantizer: str, updates: Iterable[Rows]) -> None:
    """Set rows of a quantizer's parameters in the weights and the EMA, and reset their optimizer moments."""
    for parameter, rows, values in updates:
        learner.replace_rows(f"{quantizer}.{parameter}", rows, values)


def collapse_sentences(
    visual_usage: float, diversity: float | None, use: float | None, revives: bool, starts_from_data: bool
) -> list[str]:
    """One sentence for each collapse, naming its remedy."""
    sentences = []
    if visual_usage < COLLAPSED_USAGE:
        remedy = "a lower learning rate" if revives else "--tokenizer-training.revive-every 20"
        sentences.append(f"the visual codebook has collapsed ({visual_usage:.1%} of its codes in use): try {remedy}")
    low = [
        f"{name} {value:.2f} nats"
        for name, value in (("diversity", diversity), ("use", use))
        if value is not None and value < COLLAPSED_NATS
    ]
    if low:
        remedy = (
            "more steps, or a larger --tokenizer-training.ce-visual"
            if starts_from_data
            else "--tokenizer-training.prologue-kmeans 100 400"
        )
        sentences.append(f"the prologue has collapsed ({', '.join(low)} per image): try {remedy}")
    return sentences
