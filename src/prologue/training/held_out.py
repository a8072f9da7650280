"""Evaluation on held-out images during training, and the prior weights with the lowest cross-entropy on them."""

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
"""Largest number of images that a prior is evaluated on during training."""
BATCH = 64
RISE = 0.01
"""The user is warned if the held-out cross-entropy rises above its minimum by this fraction."""


def encode_evenly(
    context: Context, tokenizer: Tokenizer, images: ImageSet, count: int, batch: int
) -> tuple[TokenIds, Tensor]:
    """Encode `count` evenly spaced center crops in the precision of training; tokens and class ids on the device."""
    chosen = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    parts, labels = [], []
    for start in range(0, count, batch):
        taken = center_batch(images, chosen[start : start + batch])
        with context.accelerator.autocast():
            parts.append(tokenizer.encode(to_model_range(taken.images.to(context.device))))
        labels.append(taken.labels)
    return TokenIds.cat(parts), torch.cat(labels).to(context.device)


class BestPrior:
    """The weights of a prior at its lowest cross-entropy on held-out images so far.

    Every process evaluates all images, so that all keep the same weights.
    """

    def __init__(self, context: Context, prior: Prior) -> None:
        self.context = context
        self.model = copy.deepcopy(prior).eval().requires_grad_(False)
        # MPS has no float64. Elsewhere the values stay on the device, so that nothing waits for it.
        self.home = torch.device("cpu") if context.device.type == "mps" else context.device
        self._lowest = torch.tensor([float("inf"), 0], dtype=torch.float64, device=self.home)
        """The lowest cross-entropy, and its step."""
        self.last: CrossEntropy | None = None
        """The last evaluation, divided by T as the losses are."""
        self._images: tuple[TokenIds, Tensor] | None = None

    @torch.no_grad()
    def evaluate(self, step: int, prior: Prior) -> None:
        """Evaluate `prior` after `step` steps, and keep its weights if they are the best so far."""
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
        """The lowest cross-entropy so far, divided by T."""
        return float(self._lowest[0])

    @property
    def step(self) -> int:
        """The step of the lowest cross-entropy; 0 before the first evaluation."""
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
        """The last evaluation, under the names of the losses."""
        if self.last is None:
            return {}
        terms = {f"held_out_{name}": value for name, value in self.last.metrics().items()}
        return terms | {"held_out_loss": self.last.total}

    def sentences(self, steps: int) -> list[str]:
        """A warning, after the last step, if the prior overfits."""
        if self.last is None or self.last.total <= self.lowest * (1 + RISE):
            return []
        lowest, last = (float(value) * self.model.layout.length for value in (self.lowest, self.last.total))
        return [
            f"prior: the cross-entropy of held-out images is {lowest:.1f} nats per image after step {self.step} of "
            f"{steps} and {last:.1f} at the end, so the prior started to overfit: the weights of step {self.step} are "
            "kept. More images or a higher prior.dropout would delay this"
        ]

    def state(self) -> dict[str, Tensor]:
        """Everything that the next evaluation depends on."""
        last = torch.full((3,), torch.nan, dtype=torch.float64) if self.last is None else torch.stack(tuple(self.last))
        facts = {"lowest": self._lowest, "last": last}
        return {f"best.{key}": value for key, value in (facts | self._weights()).items()}

    def _weights(self) -> dict[str, Tensor]:
        return {f"model.{key}": value for key, value in self.model.state_dict().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        lowest, last = stored(tensors, "best.lowest", torch.zeros(2)), stored(tensors, "best.last", torch.zeros(3))
        for key, value in self._weights().items():
            value.copy_(stored(tensors, f"best.{key}", value))
        self._lowest.copy_(lowest)
        self.last = None if last.isnan().any() else CrossEntropy(*last.double().to(self.home))
