"""Held-out images along the way: their tokens, how a prior does on them, and the weights at which it did best."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import ImageSet
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_model_range
from prologue.training.context import Context
from prologue.training.learner import stored
from prologue.training.losses import CrossEntropy, cross_entropy_terms

HELD_OUT_IMAGES = 512
"""That a prior is measured on along the way, at most."""
BATCH = 64
RISE = 0.01
"""Part by which the held-out cross-entropy has to rise from its lowest for the user to be told."""


def encode_evenly(
    context: Context, tokenizer: Tokenizer, images: ImageSet, count: int, batch: int
) -> tuple[TokenIds, Tensor]:
    """Tokens and class ids of `count` center crops, evenly spaced, on the device; in the number format of training."""
    chosen = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    parts, labels = [], []
    for start in range(0, count, batch):
        taken = center_batch(images, chosen[start : start + batch])
        with context.accelerator.autocast():
            parts.append(tokenizer.encode(to_model_range(taken.images.to(context.device))))
        labels.append(taken.labels)
    return TokenIds.cat(parts), torch.cat(labels).to(context.device)


class BestPrior:
    """The weights at which a prior's cross-entropy on held-out images was lowest so far.

    Every process measures all of the images, so that all of them keep the same weights.
    """

    def __init__(self, context: Context, prior: Prior) -> None:
        self.context = context
        self.model = copy.deepcopy(prior).eval().requires_grad_(False)
        # float64, which Apple's GPUs lack; elsewhere the figures stay on the device, so that nothing waits for it.
        self.home = torch.device("cpu") if context.device.type == "mps" else context.device
        self._lowest = torch.tensor([float("inf"), 0], dtype=torch.float64, device=self.home)
        """The lowest cross-entropy, and the step it was found at."""
        self.last: CrossEntropy | None = None
        """Per token, as the losses are."""
        self._images: tuple[TokenIds, Tensor] | None = None

    @torch.no_grad()
    def look(self, step: int, prior: Prior) -> None:
        """Measure `prior` after `step` steps, and keep its weights where it did better than before."""
        tokens, labels = self._encoded()
        layout, sums = prior.layout, torch.zeros(3, dtype=torch.float64, device=self.home)
        for start in range(0, len(labels), BATCH):
            rows = slice(start, start + BATCH)
            sequence = layout.join(layout.kept(tokens[rows]))
            with self.context.accelerator.autocast():
                terms = cross_entropy_terms(prior(sequence, labels[rows]), sequence, layout)
            sums += torch.stack(tuple(terms)).to(self.home).double() * len(sequence)
        self.last = CrossEntropy(*(sums / len(labels)))
        better = self.last.total < self._lowest[0]
        found = torch.stack([self.last.total, torch.full_like(self.last.total, step)])
        self._lowest = torch.where(better, found, self._lowest)
        better = better.to(self.context.device)
        new = prior.state_dict()
        for key, kept in self.model.state_dict().items():
            kept.copy_(torch.where(better, new[key], kept))

    @property
    def lowest(self) -> float:
        """The lowest cross-entropy per token so far."""
        return float(self._lowest[0])

    @property
    def step(self) -> int:
        """The step that it was found at; 0 before the first look."""
        return int(self._lowest[1])

    def _encoded(self) -> tuple[TokenIds, Tensor]:
        if self._images is None:
            context = self.context
            tokenizer = Tokenizer.from_pretrained(context.run.tokenizer_folder).to(context.device)
            held_out = context.data.validation
            count = min(HELD_OUT_IMAGES, len(held_out))
            self._images = encode_evenly(context, tokenizer, held_out, count, BATCH)
        return self._images

    def metrics(self) -> dict[str, Tensor | float]:
        """What was measured last, under the names of the losses."""
        if self.last is None:
            return {}
        terms = {f"held_out_{name}": value for name, value in self.last.metrics().items()}
        return terms | {"held_out_loss": self.last.total}

    def sentences(self, steps: int) -> list[str]:
        """After the last step: what the user should read where the prior did worse on held-out images than before."""
        if self.last is None or self.last.total <= self.lowest * (1 + RISE):
            return []
        lowest, last = (float(value) * self.model.layout.length for value in (self.lowest, self.last.total))
        return [
            f"prior: held-out images cost {lowest:.1f} nats each after step {self.step} of {steps}, {last:.1f} at the "
            f"end, so it had begun to learn its training images by heart: the weights of step {self.step} are kept. "
            "More images or a higher prior.dropout would let it learn longer"
        ]

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        last = torch.full((3,), torch.nan, dtype=torch.float64) if self.last is None else torch.stack(tuple(self.last))
        facts = {"lowest": self._lowest, "last": last}
        return {f"best.{key}": value for key, value in (facts | self._weights()).items()}

    def _weights(self) -> dict[str, Tensor]:
        return {f"model.{key}": value for key, value in self.model.state_dict().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        lowest, last = stored(tensors, "best.lowest", torch.zeros(2)), stored(tensors, "best.last", torch.zeros(3))
        for key, value in self._weights().items():
            value.copy_(stored(tensors, f"best.{key}", value))
        self._lowest.copy_(lowest)
        self.last = None if last.isnan().any() else CrossEntropy(*last.double().to(self.home))
