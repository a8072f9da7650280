"""The state of the codebooks: usage, perplexity, monitored entropies, and warnings of a collapse."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prologue.models.quantizers import CosineQuantizer, monitored_entropies
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Encoding, Tokenizer
from prologue.training.context import Context
from prologue.training.learner import stored

COLLAPSED_USAGE = 0.05
COLLAPSED_NATS = 0.1
ENTROPY_POSITIONS = 4096
"""Largest number of positions of a batch that the monitored entropies are computed from."""


class Usage:
    """Counts of ids: (P, K) for each of `positions` = P positions, or (1, K) over all positions."""

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
        """Fraction of the codebook that occurs at any position."""
        return float((self.counts.sum(0) > 0).float().mean())

    def entropies(self) -> Float[Tensor, " P"]:
        """Entropy of the marginal of the ids at each position, in nats."""
        counts = self.counts.cpu()  # MPS has no float64
        p = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
        entropies: Tensor = -torch.special.xlogy(p, p).sum(1)
        return entropies

    def perplexity(self) -> float:
        """Exponential of the entropy of the ids of all positions together."""
        total = self.counts.sum(0).cpu().double()
        p = total / total.sum().clamp_min(1)
        return float(torch.exp(-torch.special.xlogy(p, p).sum()))


class CodebookMonitor:
    """Codebook metrics since the last log record, and warnings in the second half of the stage."""

    def __init__(self, context: Context, model: Tokenizer) -> None:
        self.context, self.model = context, model
        self.training = context.config.tokenizer_training
        config = model.config
        self.visual = Usage(1, config.codebook_size, context.device)
        self.prologue: Usage | None = None
        if config.prologue_tokens:
            self.prologue = Usage(config.prologue_tokens, config.prologue_codebook_size, context.device)
        self._last: Encoding | None = None
        self._warned = False

    def add(self, encoding: Encoding, tokens: TokenIds) -> None:
        """Count a step's `tokens`, gathered from all processes."""
        self._last = encoding
        self.visual.add(tokens.visual)
        if self.prologue is not None:
            self.prologue.add(tokens.prologue)

    def summary(self, step: int, use: float | None) -> tuple[dict[str, Tensor | float], list[str]]:
        """Metrics and warnings; the counts start again. `use` is the use of the prologue in nats per image."""
        metrics: dict[str, Tensor | float] = {
            "visual_usage": self.visual.used,
            "visual_perplexity": self.visual.perplexity(),
        }
        metrics |= self._entropies()
        diversity = None
        if self.prologue is not None:
            diversity = float(self.prologue.entropies().sum())
            metrics["prologue_usage"] = self.prologue.used
            metrics["prologue_perplexity"] = self.prologue.perplexity()
            metrics["prologue_diversity"] = diversity
            self.prologue.reset()
        # A few tokens cannot use all of a large codebook.
        reachable = min(1.0, float(self.visual.counts.sum()) / self.visual.counts.shape[1])
        usage = self.visual.used / reachable
        self.visual.reset()
        if self._warned or step + 1 < self.training.steps // 2:
            return metrics, []
        resets = self.training.dead_code_reset_every > 0
        sentences = collapse_sentences(usage, diversity, use, resets, bool(self.training.prologue_kmeans))
        self._warned = bool(sentences)
        return metrics, sentences

    def _entropies(self) -> dict[str, Tensor | float]:
        """The monitored entropies of METHOD §5 on the last batch."""
        if self._last is None:
            return {}
        metrics: dict[str, Tensor | float] = {}
        pairs = (("visual", self.model.visual_quantizer, self._last.visual),
                 ("prologue", self.model.prologue_quantizer, self._last.prologue))  # fmt: skip
        for name, quantizer, quantized in pairs:
            if isinstance(quantizer, CosineQuantizer) and quantized is not None:
                z = self.context.gather(quantized.z.detach()).flatten(0, 1)[:ENTROPY_POSITIONS]
                sample, batch = monitored_entropies(quantizer, z[None])
                metrics |= {f"{name}_sample_entropy": sample, f"{name}_batch_entropy": batch}
        return metrics

    def state(self) -> dict[str, Tensor]:
        return {f"{name}_window": usage.counts for name, usage in self._usages()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, usage in self._usages():
            usage.counts.copy_(stored(tensors, f"{name}_window", usage.counts))

    def _usages(self) -> list[tuple[str, Usage]]:
        return [("visual", self.visual), *([("prologue", self.prologue)] if self.prologue is not None else [])]


def collapse_sentences(
    visual_usage: float, diversity: float | None, use: float | None, resets: bool, starts_from_data: bool
) -> list[str]:
    """One warning for each collapse, with a remedy.

    `resets` tells whether dead codes are reset, `starts_from_data` whether the prologue codebook starts from data.
    """
    sentences = []
    if visual_usage < COLLAPSED_USAGE:
        remedy = "a lower learning rate" if resets else "--tokenizer-training.dead-code-reset-every 20"
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
