"""Codebook health: usage and perplexity, revival of dead visual codes, a start of the prologue codebook from data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prologue.training.transfer import send

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
        _count(self.counts.view(-1), places)

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


def _count(counts: Int[Tensor, " n"], places: Int[Tensor, " m"]) -> None:
    """Add 1 at each of `places`. Not `bincount`, which waits for the device to learn the largest."""
    counts.scatter_add_(0, places, torch.ones_like(places))


def replacement_rows(
    unused: Int[Tensor, " n"], z: Float[Tensor, "B T d"], generator: torch.Generator
) -> tuple[Int[Tensor, " m"], Float[Tensor, "m d"]]:
    """Rows to re-seed and their new values: distinct encoder outputs, drawn without replacement.

    `unused` is on the host, because the draws depend on how many there are; the results are on the device of `z`.
    """
    pool = z.flatten(0, 1)
    count = min(len(unused), len(pool))
    chosen = torch.randperm(len(pool), generator=generator)[:count]
    rows = torch.randperm(len(unused), generator=generator)[:count]
    return send(unused[rows], pool.device), pool[send(chosen, pool.device)]


def spherical_kmeans(
    points: Float[Tensor, "n d"], count: int, generator: torch.Generator, rounds: int = 20
) -> Float[Tensor, "k d"]:
    """`count` unit centres of unit `points` by cosine k-means; an empty cluster takes the farthest point.

    With fewer points than centres, points are repeated with a little noise.
    """
    if len(points) < count:
        copies = -(-count // len(points))
        noise = send(torch.randn(copies * len(points), points.shape[1], generator=generator), points.device)
        points = F.normalize(points.repeat(copies, 1) + 0.01 * noise.to(points.dtype), dim=-1)
    # Outputs that hardly depend on the image yet lie so close together that their cosines round to the same number.
    # Seen from their mean they do not, and of unit vectors the nearest is the one of largest cosine.
    mean = points.mean(0)
    offsets = points - mean
    centres = points[send(torch.randperm(len(points), generator=generator)[:count], points.device)]
    for _ in range(rounds):
        shifted = centres - mean
        nearness, owner = (offsets @ shifted.T - shifted.square().sum(-1) / 2).max(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, offsets)
        sizes = torch.zeros(count, dtype=torch.int64, device=points.device)
        _count(sizes, owner)
        centres = F.normalize(sums / sizes.clamp(min=1)[:, None] + mean, dim=-1)
        empty = sizes == 0
        distance = offsets.square().sum(-1) / 2 - nearness
        farthest = distance.argsort(stable=True, descending=True)[:count]
        place = (empty.cumsum(0) - 1).clamp_min(0)  # an empty cluster's number among the empty ones
        centres = torch.where(empty[:, None], points[farthest[place]], centres)
    return centres


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
