"""The discriminator of stage 1: logits for the generator's term, and its own updates with LeCam and R1 (METHOD §7)."""

from __future__ import annotations

import torch
from torch import Tensor

from prologue.models.augment import augment
from prologue.models.discriminator import PatchDiscriminator
from prologue.training.context import Context
from prologue.training.learner import stored
from prologue.training.loop import Metrics, frozen_call
from prologue.training.losses import DiscriminatorOutputs, discriminator_terms, r1_penalty, weighted_sum
from prologue.training.microbatches import averaged, microbatches
from prologue.utils.rng import torch_stream

LECAM_DECAY = 0.999


class Adversary:
    """A PatchGAN discriminator that starts at step `gan_start`. It is always in train mode."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.training = context.config.tokenizer_training
        self.terms = discriminator_terms(self.training)
        self.seed = context.config.seed
        generator = torch_stream(self.seed, "discriminator")
        self.model = PatchDiscriminator(self.training.gan_channels, generator=generator)
        updates = max(1, self.training.steps - self.training.gan_start)
        self.learner = context.learner("discriminator", self.model, self.training.discriminator, updates, None)
        self.ema_logits = torch.zeros(2, device=context.device)
        """EMA of the mean logits of real and of reconstructed images."""

    def active(self, step: int) -> bool:
        return step >= self.training.gan_start

    def fake_logits(self, step: int, reconstruction: Tensor, part: int = 0) -> Tensor:
        """Logits of microbatch `part`; their gradient reaches only the reconstruction."""
        logits: Tensor = frozen_call(self.model, self._seen(reconstruction, step, "generator", part))
        return logits.float()

    def step(self, step: int, images: Tensor, reconstruction: Tensor) -> Metrics:
        """Do one update; real and reconstructed images pass the discriminator separately."""
        if not self.active(step):
            return {}
        rows = microbatches(len(images), self.training.accumulate)
        each = []
        for number, part in enumerate(rows):
            with self.learner.no_sync(part is rows[-1]):
                loss, metrics = self._loss(step, images[part], reconstruction[part], number)
                self.context.accelerator.backward(loss / len(rows))
            each.append(metrics)
        return averaged(each) | {"discriminator_gradient_norm": self.learner.update()}

    def _loss(self, step: int, images: Tensor, reconstruction: Tensor, part: int) -> tuple[Tensor, Metrics]:
        with self.context.accelerator.autocast():
            real = self.learner.wrapped(self._seen(images, step, "real", part)).float()
            fake = self.learner.wrapped(self._seen(reconstruction, step, "fake", part)).float()
            means = torch.stack([real.detach().mean(), fake.detach().mean()])
            means = self.context.gather(means[None]).mean(0)
            self.ema_logits.lerp_(means, (1 - LECAM_DECAY) / self.training.accumulate)
            due = self.learner.updates % self.training.r1_every == 0
            penalty = (lambda: self._r1(images)) if due else None
            ema_real, ema_fake = self.ema_logits.unbind()
            outputs = DiscriminatorOutputs(step, real, fake, ema_real, ema_fake, penalty)
            return weighted_sum(self.terms, outputs)

    def _r1(self, images: Tensor) -> Tensor:
        """R1 on plain real images, with the unwrapped module in fp32: its graph is differentiated twice."""
        with torch.autocast(images.device.type, enabled=False):
            real = images.detach().requires_grad_()
            return r1_penalty(self.model(real), real)

    def _seen(self, images: Tensor, step: int, which: str, part: int) -> Tensor:
        """The images that the discriminator gets: augmented if `gan_augment` is set."""
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
