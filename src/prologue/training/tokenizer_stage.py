"""Stage 1: the alternating autoencoder step and prior and discriminator step (METHOD §7)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from prologue.config import TokenizerTraining
from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, save_png, to_pil
from prologue.data.source import ImageSet
from prologue.errors import CheckpointError
from prologue.models.perceptual import perceptual_loss
from prologue.models.prior import Prior
from prologue.models.quantizers import CosineQuantizer, monitored_entropies
from prologue.models.tokenizer import Encoding, Tokenizer, to_model_range, to_uint8
from prologue.sampling.manifest import Manifest
from prologue.training.adversary import Adversary
from prologue.training.codebooks import Usage, apply_rows, collapse_sentences
from prologue.training.context import Context
from prologue.training.held_out import encode_evenly
from prologue.training.learner import Learner, stored
from prologue.training.loop import Metrics
from prologue.training.microbatches import averaged, parts_of
from prologue.training.schedule import ramp
from prologue.training.stage_one_prior import StageOnePrior
from prologue.utils.rng import derive_seed, torch_stream
from prologue.utils.transfer import fetch

KMEANS_POINTS = 64
"""Encoder outputs per centre for the start of the prologue codebook, at most."""
ENTROPY_POSITIONS = 4096
"""Positions of a batch that the monitored entropies are taken over, at most."""
KMEANS_BATCHES = 64
"""Batches that they come from, at most."""
USE_IMAGES = 256
"""Validation images on which the use of the prologue is measured along the way, at most."""


class TokenizerStage:
    """Trains a tokenizer, and beside it the prior whose cross-entropy shapes the prologue."""

    name = "tokenizer"

    def __init__(self, context: Context, visual_path: Tokenizer | None = None) -> None:
        """`visual_path` is the finished tokenizer whose visual part a post-hoc prologue takes over, frozen."""
        self.context = context
        self.training: TokenizerTraining = context.config.tokenizer_training
        self.steps, self.batch = self.training.steps, self.training.batch
        sizes = context.config.tokenizer
        at_once = self.batch // context.world // self.training.accumulate
        self.product = (at_once * sizes.visual_tokens, sizes.encoder.width)
        self.seed = context.config.seed
        self.post_hoc = visual_path is not None
        model = Tokenizer(context.config.tokenizer, derive_seed(self.seed, "initial"))
        if visual_path is not None:
            for own, given in zip(model.visual_path(), visual_path.visual_path(), strict=True):
                own.load_state_dict(given.state_dict())
                own.requires_grad_(False)
        self.tokenizer = context.learner(
            "tokenizer", model, self.training.autoencoder, self.steps, self.training.ema_half_life
        )
        self.model = model
        self.prior = self._make_prior()
        self.adversary = Adversary(context) if self.training.gan > 0 and not self.post_hoc else None
        self.perceptual = None
        if not self.post_hoc and self.training.perceptual_weight > 0:
            self.perceptual = perceptual_loss(self.training.perceptual, self.training.perceptual_path)
            if self.perceptual is not None:
                self.perceptual.to(context.device)
        self.use: float | None = None
        """Nats per image, as last measured."""
        self._said = False
        self._last: Encoding | None = None
        config = context.config.tokenizer
        self.visual_window = Usage(1, config.codebook_size, context.device)
        self.revival_window = Usage(1, config.codebook_size, context.device)
        self.prologue_window = (
            Usage(config.prologue_tokens, config.prologue_codebook_size, context.device)
            if config.prologue_tokens
            else None
        )

    def _make_prior(self) -> StageOnePrior | None:
        """The stage's prior; baselines without a prologue need one only where it is what ships."""
        if not self.context.config.tokenizer.prologue_tokens and not self.training.one_stage:
            return None
        return StageOnePrior(self.context, self.training.prior_model)

    def step(self, step: int) -> Metrics:
        pictures, labels = self.context.images(step, self.batch)
        images = to_model_range(pictures)
        if step in self.training.prologue_kmeans:
            self._start_prologue(step)
        null = self.context.chance(self.training.label_drop, step, self.batch, "label drop")
        encoding, reconstruction, metrics = self._autoencoder_step(step, images, labels, null)
        counts = self._watch(step, encoding)
        if self.prior is not None and not self._shared(step):
            metrics |= self.prior.step(step, encoding.tokens, labels.masked_fill(null, self.prior.model.null_class))
        if self.adversary is not None and reconstruction is not None:
            metrics |= self.adversary.step(step, images, reconstruction)
        if counts is not None:
            self._revive(step, encoding, counts())
        return metrics

    @property
    def learners(self) -> dict[str, Learner]:
        owners = (("prior", self.prior), ("discriminator", self.adversary))
        others = {f"tokenizer_training.{name}": owner.learner for name, owner in owners if owner is not None}
        return {"tokenizer_training.autoencoder": self.tokenizer, **others}

    def _shared(self, step: int) -> bool:
        """Whether the autoencoder step's pass through the prior serves the prior's own update too."""
        started = self._ce_weight(step) > 0
        return self.training.shared_prior_pass and started and self.model.prologue_quantizer is not None

    def _autoencoder_step(
        self, step: int, images: Tensor, labels: Tensor, null: Tensor
    ) -> tuple[Encoding, Tensor | None, Metrics]:
        """Update encoder, quantizers and decoder; the prior is held fixed."""
        rows = parts_of(len(images), self.training.accumulate)
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
                if loss.requires_grad:  # a post-hoc prologue has no loss before its cross-entropy begins
                    self.context.accelerator.backward(loss / len(rows))
            encodings.append(Encoding.cat([encoding]))
            reconstructions += [] if reconstruction is None else [reconstruction.detach()]
            each.append({key: torch.as_tensor(value).detach() for key, value in metrics.items()})
        weight = self._ce_weight(step)
        if not weight and self.context.world > 1:  # see `_autoencoder_loss`
            for module in (self.model.prologue_quantizer, self.model.prologue_encoder):
                if module is not None:
                    module.zero_grad(set_to_none=True)
        metrics = averaged(each)
        if self.prior is not None and self._shared(step):
            metrics |= self.prior.shared_step(
                {name: metrics[name] for name in metrics if name.startswith("ce_")}, weight * self.training.ce_visual
            )
        metrics["gradient_norm"] = self.tokenizer.update().detach()
        return Encoding.cat(encodings), torch.cat(reconstructions) if reconstructions else None, metrics

    def _ce_weight(self, step: int) -> float:
        """The part of the cross-entropy's weights that has been ramped up."""
        return ramp(step, self.training.ce_start, self.training.ce_ramp)

    def _autoencoder_loss(
        self, step: int, images: Tensor, labels: Tensor, null: Tensor, number: int, part: slice
    ) -> tuple[Encoding, Tensor | None, Tensor, Metrics]:
        """The loss of part `number` of a batch, which are the rows `part` of it."""
        options = self.training
        with self.context.accelerator.autocast():
            encoding, reconstruction = self.tokenizer.wrapped(images, reconstruct=not self.post_hoc)
            loss = images.new_zeros(())
            metrics: Metrics = {}
            if reconstruction is not None:
                l1, l2, vq = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images), encoding.visual.loss
                loss = options.l1 * l1 + options.l2 * l2 + options.vq * vq
                metrics |= {"l1": l1, "l2": l2, "vq": vq}
            weight = options.perceptual_weight * ramp(step, options.perceptual_start, options.perceptual_ramp)
            if self.perceptual is not None and reconstruction is not None and weight:
                metrics["perceptual"] = self.perceptual(reconstruction, images)
                loss = loss + weight * metrics["perceptual"]
            if self.adversary is not None and reconstruction is not None and self.adversary.active(step):
                metrics["gan_generator"] = self.adversary.generator_loss(step, reconstruction, number)
                loss = loss + self.adversary.weight(step) * metrics["gan_generator"]
            weight = self._ce_weight(step)
            if self.prior is not None and encoding.prologue is not None and weight:
                class_ids = labels.masked_fill(null, self.prior.model.null_class)
                terms = self.prior.encoder_terms(step, encoding, class_ids, self._shared(step), part)
                ce = options.ce_prologue * (terms.prologue + terms.eos) + options.ce_visual * terms.visual
                loss = loss + weight * ce
                metrics |= terms.metrics() if self._shared(step) else {}
            # A process group waits for a gradient of every parameter: before the cross-entropy begins it gets zeros,
            # which are then taken away, because the optimizer must not count them as updates.
            idle = encoding.prologue is not None and not weight and self.context.world > 1
            if idle and encoding.prologue is not None and encoding.prologue.one_hot is not None:
                loss = loss + 0 * encoding.prologue.one_hot.sum()
        return encoding, reconstruction, loss, metrics | {"loss": loss.detach()}

    @torch.no_grad()
    def _start_prologue(self, step: int) -> None:
        """Set the prologue codebook to k-means centres of the encoder's prologue outputs."""
        quantizer = self.model.prologue_quantizer
        if quantizer is None:
            return
        points: list[Tensor] = []
        wanted = KMEANS_POINTS * quantizer.size
        while sum(len(part) for part in points) < wanted and len(points) < KMEANS_BATCHES:
            pictures, _ = self.context.images(step + len(points), self.batch)
            prologue = self.model.features(to_model_range(pictures))[1]
            assert prologue is not None
            points.append(self.context.gather(quantizer(prologue).z.flatten(0, 1)))
        rows = quantizer.start_from(torch.cat(points)[:wanted], torch_stream(self.seed, "prologue k-means", step))
        apply_rows(self.tokenizer, "prologue_quantizer", rows)

    @torch.no_grad()
    def _watch(self, step: int, encoding: Encoding) -> Callable[[], Tensor] | None:
        """Count ids. At a step that re-seeds unused visual codes their counts come back, on their way to the host.

        That every `revive_every` steps is the one thing outside of log steps that the host waits for: the draws depend
        on how many codes are unused. The rest of the step is queued meanwhile.
        """
        self._last = encoding
        visual = self.context.gather(encoding.visual.ids)
        self.visual_window.add(visual)
        if self.prologue_window is not None and encoding.prologue is not None:
            self.prologue_window.add(self.context.gather(encoding.prologue.ids))
        every = self.training.revive_every
        if self.post_hoc or not every or step >= self.training.revive_until * self.steps:
            return None
        self.revival_window.add(visual)
        return None if (step + 1) % every else fetch(self.revival_window.counts[0])

    @torch.no_grad()
    def _revive(self, step: int, encoding: Encoding, counts: Tensor) -> None:
        """Re-seed the visual codes that nothing used since the last time."""
        if bool((counts == 0).any()):
            z = self.context.gather(encoding.visual.z.detach())
            rows = self.model.visual_quantizer.reset_unused(z, counts, torch_stream(self.seed, "revival", step))
            apply_rows(self.tokenizer, "visual_quantizer", rows)
        self.revival_window.reset()

    def _entropies(self) -> Metrics:
        """The monitored entropies of METHOD §5 on the last batch, of so many positions that they cost little."""
        metrics: Metrics = {}
        if self._last is None:
            return metrics
        pairs = (("visual", self.model.visual_quantizer, self._last.visual),
                 ("prologue", self.model.prologue_quantizer, self._last.prologue))  # fmt: skip
        for name, quantizer, quantized in pairs:
            if isinstance(quantizer, CosineQuantizer) and quantized is not None:
                z = self.context.gather(quantized.z.detach()).flatten(0, 1)[:ENTROPY_POSITIONS]
                sample, batch = monitored_entropies(quantizer, z[None])
                metrics |= {f"{name}_sample_entropy": sample, f"{name}_batch_entropy": batch}
        return metrics

    def summary(self, step: int) -> tuple[Metrics, list[str]]:
        metrics: Metrics = {
            "visual_usage": self.visual_window.used,
            "visual_perplexity": self.visual_window.perplexity(),
            "learning_rate": self.tokenizer.optimizer.param_groups[0]["lr"],
        }
        metrics |= self._entropies()
        diversity = None
        if self.prologue_window is not None:
            metrics["prologue_usage"] = self.prologue_window.used
            metrics["prologue_perplexity"] = self.prologue_window.perplexity()
            diversity = float(self.prologue_window.entropies().sum())
            metrics["prologue_diversity"] = diversity
            self.prologue_window.reset()
        late = step + 1 >= self.steps // 2
        used = self.visual_window.used
        # A codebook cannot be used more widely than the window has tokens, which small batches must not be blamed for.
        reachable = min(1.0, float(self.visual_window.counts.sum()) / self.visual_window.counts.shape[1])
        self.visual_window.reset()
        if self.prior is not None and self.prior.last_cost is not None:
            metrics["prologue_cost"] = self.prior.last_cost
        if not late or self._said:
            return metrics, []
        sentences = collapse_sentences(
            used / reachable, diversity, self.use, self.training.revive_every > 0, bool(self.training.prologue_kmeans)
        )
        self._said = bool(sentences)
        return metrics, sentences

    def state(self) -> dict[str, Tensor]:
        state = self.tokenizer.state() | {name: window.counts for name, window in self._windows().items()}
        if self.prior is not None:
            state |= self.prior.learner.state()
        if self.adversary is not None:
            state |= self.adversary.state()
        return state

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.tokenizer.load_state(tensors)
        for name, window in self._windows().items():
            window.counts.copy_(stored(tensors, name, window.counts))
        if self.prior is not None:
            self.prior.learner.load_state(tensors)
        if self.adversary is not None:
            self.adversary.load_state(tensors)

    def warm_start(self, step: int) -> None:
        raise CheckpointError("the finished tokenizer alone is not enough: its prior and discriminator are not kept")

    def _windows(self) -> dict[str, Usage]:
        """Counts that go on over a checkpoint: of the next revival and of the next log record."""
        windows = {"revival_window": self.revival_window, "visual_window": self.visual_window}
        return windows | ({"prologue_window": self.prologue_window} if self.prologue_window is not None else {})

    def ema_model(self) -> Tokenizer:
        """The EMA tokenizer."""
        shipped = self.tokenizer.ema_model
        assert isinstance(shipped, Tokenizer)
        return shipped

    @torch.no_grad()
    def snapshot(self, step: int) -> Metrics:
        """Validation images (training images where none are held out) above their reconstructions; the use."""
        images = self.context.data.validation if len(self.context.data.validation) else self.context.data.train
        pictures = center_batch(images, range(min(8, len(images)))).images
        model = self.ema_model()
        shown = to_uint8(model.decode(model.encode(to_model_range(pictures.to(self.context.device))).visual)).cpu()
        path = self.context.run.samples_folder / f"tokenizer-{step:08d}.png"
        save_png(path, labelled_grid([to_pil(pictures), to_pil(shown)], row_labels=["image", "reconstruction"]))
        return self._measure_use(images)

    def _measure_use(self, images: ImageSet) -> Metrics:
        """What the prologues of up to `USE_IMAGES` images, evenly spaced, tell the EMA prior about their visual ids."""
        count = min(USE_IMAGES, len(images))
        if self.prior is None or not self.prior.model.layout.has_prologue or count < 2:
            return {}
        model, share = self.ema_model(), max(1, self.batch // self.context.world)
        tokens, class_ids = encode_evenly(self.context, model, images, count, share)
        if self.training.label_drop == 1:
            class_ids = torch.full_like(class_ids, self.prior.model.null_class)
        self.use = self.prior.use(tokens, class_ids, share)
        return {"prologue_use": self.use, "prologue_use_images": float(count)}

    def finish(self) -> None:
        """Write the EMA tokenizer; in one-stage training the EMA prior too."""
        Manifest.withdraw(self.context.run.path)  # a prior that is there was trained with the one before
        self.ema_model().save_pretrained(self.context.run.tokenizer_folder)
        if self.training.one_stage and self.prior is not None:
            prior = self.prior.learner.ema_model
            assert isinstance(prior, Prior)
            prior.save_pretrained(self.context.run.prior_folder)
