"""Stage 1: the autoencoder step, and the step of the prior and the discriminator, in turn (METHOD §7)."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial

import torch
from torch import Tensor

from prologue.config import TokenizerTraining
from prologue.errors import CheckpointError
from prologue.models.perceptual import perceptual_loss
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Encoding, Tokenizer, to_model_range
from prologue.sampling.manifest import Manifest
from prologue.training.adversary import Adversary
from prologue.training.codebooks import CodebookMonitor
from prologue.training.context import Context
from prologue.training.learner import Learner
from prologue.training.loop import Metrics
from prologue.training.losses import StepOutputs, autoencoder_terms, weighted_sum
from prologue.training.microbatches import averaged, microbatches
from prologue.training.schedule import Ramp
from prologue.training.snapshots import save_reconstructions
from prologue.training.stage_one_prior import StageOnePrior
from prologue.training.upkeep import CodebookUpkeep
from prologue.utils.rng import derive_seed


class TokenizerStage:
    """Trains a tokenizer, together with the prior whose cross-entropy shapes the prologue."""

    name = "tokenizer"

    def __init__(self, context: Context, visual_path: Tokenizer | None = None) -> None:
        """`visual_path` is a finished tokenizer; a post-hoc prologue uses its visual part, frozen."""
        self.context = context
        self.training: TokenizerTraining = context.config.tokenizer_training
        self.steps, self.batch = self.training.steps, self.training.batch
        self.terms = autoencoder_terms(self.training)
        self.ce_ramp = Ramp(1.0, self.training.ce_start, self.training.ce_ramp)
        sizes = context.config.tokenizer
        at_once = self.batch // context.world // self.training.accumulate
        self.product = (at_once * sizes.visual_tokens, sizes.encoder.width)
        self.post_hoc = visual_path is not None
        self.model = Tokenizer(sizes, derive_seed(context.config.seed, "initial"))
        if visual_path is not None:
            for own, given in zip(self.model.visual_path(), visual_path.visual_path(), strict=True):
                own.load_state_dict(given.state_dict())
                own.requires_grad_(False)
        self.tokenizer = context.learner(
            "tokenizer", self.model, self.training.autoencoder, self.steps, self.training.ema_half_life
        )
        # A baseline needs the prior of this stage only if this prior is saved.
        with_prior = sizes.prologue_tokens > 0 or self.training.one_stage
        self.prior = StageOnePrior(context, self.training.prior_model) if with_prior else None
        self.adversary = Adversary(context) if self.training.gan > 0 and not self.post_hoc else None
        self.perceptual = None
        if not self.post_hoc and self.training.perceptual_weight > 0:
            self.perceptual = perceptual_loss(self.training.perceptual, self.training.perceptual_path)
            if self.perceptual is not None:
                self.perceptual.to(context.device)
        self.monitor = CodebookMonitor(context, self.model)
        self.upkeep = CodebookUpkeep(context, self.tokenizer, self.model)

    def step(self, step: int) -> Metrics:
        pictures, labels = self.context.images(step, self.batch)
        images = to_model_range(pictures)
        self.upkeep.start_prologue(step)
        null = self.context.chance(self.training.label_drop, step, self.batch, "label drop")
        encoding, reconstruction, metrics = self._autoencoder_step(step, images, labels, null)
        tokens = self._gathered(encoding.tokens)
        self.monitor.add(encoding, tokens)
        counts = self.upkeep.count(step, tokens.visual)
        if self.prior is not None and not self._shared(step):
            metrics |= self.prior.step(step, encoding.tokens, labels.masked_fill(null, self.prior.model.null_class))
        if self.adversary is not None and reconstruction is not None:
            metrics |= self.adversary.step(step, images, reconstruction)
        self.upkeep.reset_dead_codes(step, encoding, counts)
        return metrics

    def _gathered(self, tokens: TokenIds) -> TokenIds:
        """The tokens of all processes."""
        visual = self.context.gather(tokens.visual)
        return TokenIds(self.context.gather(tokens.prologue) if tokens.prologue.shape[1] else visual[:, :0], visual)

    @property
    def learners(self) -> dict[str, Learner]:
        owners = (("prior", self.prior), ("discriminator", self.adversary))
        others = {f"tokenizer_training.{name}": owner.learner for name, owner in owners if owner is not None}
        return {"tokenizer_training.autoencoder": self.tokenizer, **others}

    def _shared(self, step: int) -> bool:
        """Whether the prior's own update uses the gradients of the autoencoder step's pass."""
        has_prologue = self.model.prologue_quantizer is not None
        return self.training.shared_prior_pass and has_prologue and self.ce_ramp.at(step) > 0

    def _autoencoder_step(
        self, step: int, images: Tensor, labels: Tensor, null: Tensor
    ) -> tuple[Encoding, Tensor | None, Metrics]:
        """Update encoder, quantizers and decoder; the prior is held fixed."""
        rows = microbatches(len(images), self.training.accumulate)
        encodings: list[Encoding] = []
        reconstructions: list[Tensor] = []
        each: list[Metrics] = []
        for number, part in enumerate(rows):
            with ExitStack() as around:
                for learner in (self.tokenizer, self.prior.learner if self.prior is not None else None):
                    if learner is not None:
                        around.enter_context(learner.no_sync(part is rows[-1]))
                encoding, reconstruction, loss, metrics = self._autoencoder_loss(
                    step, images[part], labels[part], null[part], number, part
                )
                if loss.requires_grad:  # a post-hoc prologue has no loss before the cross-entropy starts
                    self.context.accelerator.backward(loss / len(rows))
            encodings.append(Encoding.cat([encoding]))
            reconstructions += [] if reconstruction is None else [reconstruction.detach()]
            each.append({key: torch.as_tensor(value).detach() for key, value in metrics.items()})
        if self._prologue_is_idle(step):
            for module in (self.model.prologue_quantizer, self.model.prologue_encoder):
                if module is not None:
                    module.zero_grad(set_to_none=True)
        metrics = averaged(each)
        if self.prior is not None and self._shared(step):
            terms = {name: metrics[name] for name in metrics if name.startswith("ce_")}
            metrics |= self.prior.shared_step(terms, self.ce_ramp.at(step) * self.training.ce_visual)
        metrics["gradient_norm"] = self.tokenizer.update().detach()
        return Encoding.cat(encodings), torch.cat(reconstructions) if reconstructions else None, metrics

    def _autoencoder_loss(
        self, step: int, images: Tensor, labels: Tensor, null: Tensor, number: int, part: slice
    ) -> tuple[Encoding, Tensor | None, Tensor, Metrics]:
        """The loss of microbatch `number`, which has the rows `part` of the batch."""
        with self.context.accelerator.autocast():
            encoding, reconstruction = self.tokenizer.wrapped(images, reconstruct=not self.post_hoc)
            fake_logits = cross_entropy = None
            if self.adversary is not None and reconstruction is not None and self.adversary.active(step):
                fake_logits = cache(partial(self.adversary.fake_logits, step, reconstruction, number))
            if self.prior is not None and encoding.prologue is not None:
                class_ids = labels.masked_fill(null, self.prior.model.null_class)
                cross_entropy = cache(
                    partial(self.prior.encoder_terms, step, encoding, class_ids, self._shared(step), part)
                )
            outputs = StepOutputs(step, images, reconstruction, encoding, self.perceptual, fake_logits, cross_entropy)
            loss, metrics = weighted_sum(self.terms, outputs)
            if cross_entropy is not None and self._shared(step):
                metrics |= cross_entropy().metrics()
            # A process group waits for a gradient of every parameter. Those of the prologue get zeros, which are
            # removed after the backward pass, because the optimizer must not count them as updates.
            if self._prologue_is_idle(step) and encoding.prologue is not None and encoding.prologue.one_hot is not None:
                loss = loss + 0 * encoding.prologue.one_hot.sum()
        return encoding, reconstruction, loss, metrics | {"loss": loss.detach()}

    def _prologue_is_idle(self, step: int) -> bool:
        """Whether no term reaches the prologue yet in a process group: neither the cross-entropy nor a user's term."""
        reaching = self.ce_ramp.at(step) or self.training.losses
        return self.context.world > 1 and self.model.prologue_quantizer is not None and not reaching

    def summary(self, step: int) -> tuple[Metrics, list[str]]:
        metrics: Metrics = {"learning_rate": self.tokenizer.optimizer.param_groups[0]["lr"]}
        codebooks, sentences = self.monitor.summary(step, self.prior.last_use if self.prior is not None else None)
        metrics |= codebooks
        if self.prior is not None and self.prior.last_cost is not None:
            metrics["prologue_cost"] = self.prior.last_cost
        return metrics, sentences

    def state(self) -> dict[str, Tensor]:
        state = self.tokenizer.state() | self.upkeep.state() | self.monitor.state()
        if self.prior is not None:
            state |= self.prior.learner.state()
        if self.adversary is not None:
            state |= self.adversary.state()
        return state

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.tokenizer.load_state(tensors)
        self.upkeep.load_state(tensors)
        self.monitor.load_state(tensors)
        if self.prior is not None:
            self.prior.learner.load_state(tensors)
        if self.adversary is not None:
            self.adversary.load_state(tensors)

    def warm_start(self, step: int) -> None:
        raise CheckpointError("the finished tokenizer is not enough to continue: its prior and discriminator are lost")

    def ema_model(self) -> Tokenizer:
        """The EMA tokenizer."""
        model = self.tokenizer.ema_model
        assert isinstance(model, Tokenizer)
        return model

    def snapshot(self, step: int) -> Metrics:
        """Save reconstructions of validation images, or of training images if there are none, and measure the use."""
        images = self.context.data.validation if len(self.context.data.validation) else self.context.data.train
        save_reconstructions(self.context, self.ema_model(), images, step)
        return {} if self.prior is None else self.prior.measure_use(self.ema_model(), images)

    def finish(self) -> None:
        """Write the EMA tokenizer; in one-stage training the EMA prior too."""
        Manifest.withdraw(self.context.run.path)  # an earlier prior was trained with an earlier tokenizer
        self.ema_model().save_pretrained(self.context.run.tokenizer_folder)
        if self.training.one_stage and self.prior is not None:
            prior = self.prior.learner.ema_model
            assert isinstance(prior, Prior)
            prior.save_pretrained(self.context.run.prior_folder)
