"""Every loss term of METHOD §7 as a named function, and the lists of weighted terms that training adds up.

A term of the autoencoder step is a function `term(outputs, **options)` of `StepOutputs`. It returns a scalar, or None
if it does not apply. The configuration `tokenizer_training.losses` adds terms by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prologue.config import Component, TokenizerTraining
from prologue.errors import ConfigError
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Encoding
from prologue.training.schedule import Ramp
from prologue.utils.registry import Registry, check_options


class CrossEntropy(NamedTuple):
    """The three terms of METHOD §6: each summed over its tokens, averaged over the batch, divided by T."""

    prologue: Float[Tensor, ""]
    eos: Float[Tensor, ""]
    visual: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.prologue + self.eos + self.visual

    def metrics(self) -> dict[str, Tensor | float]:
        """The detached terms under their names in the log."""
        return {f"ce_{name}": value.detach() for name, value in self._asdict().items()}


def cross_entropy_terms(
    logits: Float[Tensor, "B T V"], sequence: Int[Tensor, "B T"], layout: SequenceLayout
) -> CrossEntropy:
    """Cross-entropy of each segment over the whole vocabulary; 0 for a segment that the layout does not have."""
    per_token = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none").view(sequence.shape)
    sums = layout.by_segment(per_token, sequence)
    return CrossEntropy(**{name: values.mean() / layout.length for name, values in sums.items()})


def generator_loss(fake: Tensor) -> Float[Tensor, ""]:
    """`mean softplus(−fake)` of the discriminator's logits of reconstructions."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """`mean softplus(−real) + mean softplus(fake)`."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def lecam_loss(real: Tensor, fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Float[Tensor, ""]:
    """`mean relu(real − ema_fake)² + mean relu(ema_real − fake)²`, with EMAs of the mean logits."""
    return F.relu(real - ema_fake).square().mean() + F.relu(ema_real - fake).square().mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Float[Tensor, ""]:
    """`½ · mean ‖∇ₓ ΣD(x)‖²` on real images, which must require a gradient."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(1).mean()


# Terms of the autoencoder step


@dataclass(frozen=True)
class StepOutputs:
    """The inputs of a term of the autoencoder step, for one microbatch, under autocast."""

    step: int
    images: Float[Tensor, "B 3 H W"]
    """In [-1, 1]."""
    reconstruction: Float[Tensor, "B 3 H W"] | None
    """None for `prologue-post`."""
    encoding: Encoding
    """Outputs of both quantizers: ids, codes, straight-through one-hot."""
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    """The perceptual distance of reconstructions and images."""
    fake_logits: Callable[[], Tensor] | None = None
    """Runs the discriminator on the reconstruction, once; None before it starts."""
    cross_entropy: Callable[[], CrossEntropy] | None = None
    """Runs the prior, held fixed, once; None without a prologue. With `shared_prior_pass` every term that uses it also
    trains the prior."""

    @property
    def device(self) -> torch.device:
        return self.images.device


def l1(outputs: StepOutputs) -> Tensor | None:
    """Mean absolute error."""
    return None if outputs.reconstruction is None else F.l1_loss(outputs.reconstruction, outputs.images)


def l2(outputs: StepOutputs) -> Tensor | None:
    """Mean squared error."""
    return None if outputs.reconstruction is None else F.mse_loss(outputs.reconstruction, outputs.images)


def vq(outputs: StepOutputs) -> Tensor | None:
    """Loss of the visual quantizer."""
    return None if outputs.reconstruction is None else outputs.encoding.visual.loss


def perceptual(outputs: StepOutputs) -> Tensor | None:
    """Perceptual distance."""
    if outputs.perceptual is None or outputs.reconstruction is None:
        return None
    return outputs.perceptual(outputs.reconstruction, outputs.images)


def gan_generator(outputs: StepOutputs) -> Tensor | None:
    """The generator's side of the GAN."""
    return None if outputs.fake_logits is None else generator_loss(outputs.fake_logits())


def cross_entropy(outputs: StepOutputs, prologue: float, visual: float) -> Tensor | None:
    """`prologue · (CE_prologue + CE_eos) + visual · CE_visual`; its gradient reaches the prologue's encoder alone."""
    if outputs.cross_entropy is None:
        return None
    terms = outputs.cross_entropy()
    return prologue * (terms.prologue + terms.eos) + visual * terms.visual


LOSSES: Registry[Callable[..., Tensor | None]] = Registry(
    "loss term",
    {each.__name__: each for each in (l1, l2, vq, perceptual, gan_generator, cross_entropy)},
)
"""Terms of the autoencoder step by name."""


# Lists of weighted terms


@dataclass(frozen=True)
class Weighted:
    """A term, its weight over the steps, and whether its value is logged."""

    name: str
    """Its name in `metrics.jsonl`."""
    term: Callable[..., Tensor | None]
    ramp: Ramp
    log: Literal["always", "weighted", "never"] = "weighted"
    """`always` also computes and logs the term at weight 0."""


def autoencoder_terms(training: TokenizerTraining) -> tuple[Weighted, ...]:
    """The terms of the autoencoder step in the order of their sum (METHOD §7), then those of the configuration.

    Raises:
        ConfigError: a term of `training.losses` is unknown, gets a wrong option, or has a name that is taken.
    """
    ce = partial(cross_entropy, prologue=training.ce_prologue, visual=training.ce_visual)
    perceptual_ramp = Ramp(training.perceptual_weight, training.perceptual_start, training.perceptual_ramp)
    terms = [
        Weighted("l1", l1, Ramp(training.l1), log="always"),
        Weighted("l2", l2, Ramp(training.l2), log="always"),
        Weighted("vq", vq, Ramp(training.vq), log="always"),
        Weighted("perceptual", perceptual, perceptual_ramp),
        Weighted("gan_generator", gan_generator, Ramp(training.gan, training.gan_start, training.gan_ramp)),
        Weighted("cross_entropy", ce, Ramp(1.0, training.ce_start, training.ce_ramp), log="never"),
    ]
    for component in training.losses:
        added = _configured(component)
        if any(added.name == term.name for term in terms):
            raise ConfigError(f"two loss terms of the autoencoder step are named {added.name!r}: rename one")
        terms.append(added)
    return tuple(terms)


def _configured(component: Component) -> Weighted:
    """The term of a component `{"name": …, "weight": …, "start": …, "length": …, OPTION: …}`."""
    name = component["name"]
    options = {key: value for key, value in component.items() if key != "name"}
    ramp = Ramp(**{key: options.pop(key) for key in ("weight", "start", "length") if key in options})
    term = LOSSES.get(name)
    check_options(f"the loss term {name!r}", partial(term, None), options, {})
    return Weighted(name.rpartition(":")[2], partial(term, **options), ramp)


@dataclass(frozen=True)
class DiscriminatorOutputs:
    """The inputs of a term of the discriminator."""

    step: int
    real: Tensor
    fake: Tensor
    ema_real: Float[Tensor, ""]
    ema_fake: Float[Tensor, ""]
    penalty: Callable[[], Tensor] | None
    """Computes R1; None at an update without it."""

    @property
    def device(self) -> torch.device:
        return self.real.device


def discriminator_terms(training: TokenizerTraining) -> tuple[Weighted, ...]:
    """The terms of the discriminator in the order of their sum (METHOD §7)."""
    return (
        Weighted("gan_discriminator", lambda out: discriminator_loss(out.real, out.fake), Ramp(1.0)),
        Weighted(
            "lecam", lambda out: lecam_loss(out.real, out.fake, out.ema_real, out.ema_fake), Ramp(training.lecam),
            log="never",
        ),
        Weighted("r1", lambda out: None if out.penalty is None else out.penalty(), Ramp(training.r1)),
    )  # fmt: skip


def weighted_sum(
    terms: Sequence[Weighted], outputs: StepOutputs | DiscriminatorOutputs
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Add up the terms that have a weight at this step. Returns the loss and the detached values for the log.

    Raises:
        ConfigError: a term returns no scalar tensor.
    """
    loss: Any = 0.0
    metrics: dict[str, Tensor | float] = {}
    for each in terms:
        weight = each.ramp.at(outputs.step)
        if not weight and each.log != "always":
            continue
        value = each.term(outputs)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.ndim:
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"the loss term {each.name!r} returned {kind}: return a scalar tensor, or None")
        loss = loss + weight * value
        if each.log != "never":
            metrics[each.name] = value.detach()
    return torch.as_tensor(loss, device=outputs.device), metrics
