"""The discriminator's side of stage 1: generator term, LeCam, R1, its own updates (METHOD §7)."""

from __future__ import annotations

import torch
from torch import Tensor

from prologue.models.augment import augment
from prologue.models.discriminator import PatchDiscriminator
from prologue.training.context import Context
from prologue.training.learner import stored
from prologue.training.loop import Metrics, frozen_call
from prologue.training.losses import discriminator_loss, generator_loss, lecam_loss, r1_penalty
from prologue.training.microbatches import averaged, parts_of
from prologue.training.schedule import ramp
from prologue.utils.rng import torch_stream

LECAM_DECAY = 0.999


class Adversary:
    """A PatchGAN discriminator that judges reconstructions from `gan_start` on. It is always in train mode."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.training = context.config.tokenizer_training
        self.seed = context.config.seed
        generator = torch_stream(self.seed, "discriminator")
        self.model = PatchDiscriminator(self.training.gan_channels, generator=generator)
        updates = max(1, self.training.steps - self.training.gan_start)
        self.learner = context.learner("discriminator", self.model, self.training.discriminator, updates, None)
        self.ema_logits = torch.zeros(2, device=context.device)
        """EMA of the mean logit of real and of reconstructed images."""

    def active(self, step: int) -> bool:
        return step >= self.training.gan_start

    def weight(self, step: int) -> float:
        """Weight of the generator's term at `step`."""
        return self.training.gan * ramp(step, self.training.gan_start, self.training.gan_ramp)

    def generator_loss(self, step: int, reconstruction: Tensor, part: int = 0) -> Tensor:
        """The generator's term on part number `part` of a batch; its gradient reaches the reconstruction only."""
        seen = self._seen(reconstruction, step, "generator", part)
        return generator_loss(frozen_call(self.model, seen).float())

    def step(self, step: int, images: Tensor, reconstruction: Tensor) -> Metrics:
        """One discriminator update; real and reconstructed images pass it separately."""
        if not self.active(step):
            return {}
        rows = parts_of(len(images), self.training.accumulate)
        each = []
        for number, part in enumerate(rows):
            with self.learner.no_sync(part is rows[-1]):
                loss, metrics = self._loss(step, images[part], reconstruction[part], number)
                self.context.accelerator.backward(loss / len(rows))
            each.append(metrics)
        return averaged(each) | {"discriminator_gradient_norm": self.learner.update()}

    def _loss(self, step: int, images: Tensor, reconstruction: Tensor, part: int) -> tuple[Tensor, Metrics]:
        options = self.training
        with self.context.accelerator.autocast():
            real = self.learner.wrapped(self._seen(images, step, "real", part)).float()
            fake = self.learner.wrapped(self._seen(reconstruction, step, "fake", part)).float()
            means = torch.stack([real.detach().mean(), fake.detach().mean()])
            means = self.context.gather(means[None]).mean(0)
            self.ema_logits.lerp_(means, (1 - LECAM_DECAY) / options.accumulate)
            loss = discriminator_loss(real, fake)
            metrics: Metrics = {"gan_discriminator": loss.detach()}
            if options.lecam:
                loss = loss + options.lecam * lecam_loss(real, fake, *self.ema_logits.unbind())
            if options.r1 and self.learner.updates % options.r1_every == 0:
                penalty = self._r1(images)
                loss = loss + options.r1 * penalty
                metrics["r1"] = penalty.detach()
        return loss, metrics

    def _r1(self, images: Tensor) -> Tensor:
        """On plain real images through the bare module, in fp32: its graph is differentiated twice."""
        with torch.autocast(images.device.type, enabled=False):
            real = images.detach().requires_grad_()
            return r1_penalty(self.model(real), real)

    def _seen(self, images: Tensor, step: int, which: str, part: int) -> Tensor:
        if not self.training.gan_augment:
            return images
        place = (step, self.context.rank, *([part] if part else []))
        stream = torch_stream(self.seed, "augmentation", which, *place, device=images.device)
        return augment(images, stream)

    def state(self) -> dict[str, Tensor]:
        return self.learner.state() | {"ema_logits": self.ema_logits}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.learner.load_state(tensors)
        self.ema_logits.copy_(stored(tensors, "ema_logits", self.ema_logits))
