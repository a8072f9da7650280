"""Every loss term of METHOD §7 as a pure function of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prologue.models.sequence import SequenceLayout


class CrossEntropy(NamedTuple):
    """The three terms of METHOD §6: each summed over its tokens, averaged over the batch, divided by T."""

    prologue: Float[Tensor, ""]
    eos: Float[Tensor, ""]
    visual: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.prologue + self.eos + self.visual

    def metrics(self) -> dict[str, Tensor | float]:
        """The terms by the names of the log, detached."""
        return {f"ce_{name}": value.detach() for name, value in self._asdict().items()}


def cross_entropy_terms(
    logits: Float[Tensor, "B T V"], sequence: Int[Tensor, "B T"], layout: SequenceLayout
) -> CrossEntropy:
    """Cross-entropy of each segment over the whole vocabulary; absent segments give 0."""
    per_token = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none").view(sequence.shape)
    sums = layout.by_segment(per_token, sequence)
    return CrossEntropy(**{name: values.mean() / layout.length for name, values in sums.items()})


def generator_loss(fake: Tensor) -> Float[Tensor, ""]:
    """`mean softplus(−fake)` on the discriminator's logits of reconstructions."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """`mean softplus(−real) + mean softplus(fake)`."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def lecam_loss(real: Tensor, fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Float[Tensor, ""]:
    """`mean relu(real − ema_fake)² + mean relu(ema_real − fake)²`, against EMAs of the mean logits."""
    return F.relu(real - ema_fake).square().mean() + F.relu(ema_real - fake).square().mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Float[Tensor, ""]:
    """`½ · mean ‖∇ₓ ΣD(x)‖²` on real images, which must require a gradient."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(1).mean()
