"""The prior of stage 1, whose cross-entropy shapes the prologue (METHOD §7)."""

from __future__ import annotations

import torch
from torch import Tensor

from prologue.config import PriorOptions
from prologue.data.source import ImageSet
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout, TokenIds
from prologue.models.tokenizer import Encoding, Tokenizer
from prologue.training.context import Context
from prologue.training.held_out import encode_evenly
from prologue.training.loop import Metrics, frozen_call
from prologue.training.losses import CrossEntropy, cross_entropy_terms
from prologue.training.microbatches import add_cross_entropy
from prologue.training.schedule import Ramp
from prologue.utils.rng import derive_seed, torch_stream

USE_IMAGES = 256
"""Largest number of images that the use of the prologue is measured on during training."""


class StageOnePrior:
    """The prior of stage 1: held fixed in the encoder's step, then updated on the ids."""

    def __init__(self, context: Context, options: PriorOptions) -> None:
        training = context.config.tokenizer_training
        self.context, self.training = context, training
        layout = SequenceLayout.of(context.config.tokenizer)
        config = options.sized(layout.config, context.data.num_classes)
        self.model = Prior(config, derive_seed(context.config.seed, "stage-one prior"))
        self.learner = context.learner(
            "prior", self.model, training.prior, training.steps, training.prior_ema_half_life
        )
        self.dropout = Ramp(training.visual_dropout, training.visual_dropout_start, training.visual_dropout_ramp)
        self.last_cost: Tensor | None = None
        """Cost of the prologue at the last update, in nats per image."""
        self.last_use: float | None = None
        """Use of the prologue as last measured, in nats per image."""

    def encoder_terms(
        self, step: int, encoding: Encoding, class_ids: Tensor, shared: bool, part: slice = slice(None)
    ) -> CrossEntropy:
        """The cross-entropy whose gradient reaches the encoder through the one-hot of the prologue (METHOD §7).

        The prior is held fixed, unless `shared`: then the pass also gives its gradients, for `shared_step`. `part` has
        the rows of the batch that `encoding` belongs to.
        """
        assert encoding.prologue is not None
        layout = self.model.layout
        sequence = layout.join(encoding.tokens)
        inputs = {
            "visual_dropout": self._dropped(step, "encoder")[part],
            "prologue_one_hot": encoding.prologue.one_hot,
        }
        self.model.eval()
        if shared:
            logits = self.learner.wrapped(sequence, class_ids, **inputs)
        else:
            logits = frozen_call(self.model, sequence, class_ids, **inputs)
        self.model.train()
        return cross_entropy_terms(logits, sequence, layout)

    def shared_step(self, terms: Metrics, weight: float) -> Metrics:
        """Update on the gradients of the shared passes, whose terms had this `weight`.

        The gradients equal those of `step` apart from the draw of visual dropout, because the prior has not changed
        since and the one-hot gives the same embeddings as the ids.
        """
        return self._metrics(terms, self.learner.update(weight))

    def step(self, step: int, tokens: TokenIds, class_ids: Tensor) -> Metrics:
        """Update on the ids; all embeddings are looked up."""
        layout = self.model.layout
        sequence = layout.join(tokens)
        self.context.set_dropout_stream(self.model, "stage-one dropout", step)
        dropped = self._dropped(step, "prior") if layout.has_prologue else None
        accumulate = self.training.accumulate
        terms = add_cross_entropy(self.context, self.learner, layout, sequence, class_ids, dropped, accumulate)
        del terms["loss"]  # the autoencoder step logs this name
        return self._metrics(terms, self.learner.update())

    def _metrics(self, terms: Metrics, norm: Tensor) -> Metrics:
        self.last_cost = torch.as_tensor(terms["ce_prologue"] + terms["ce_eos"]) * self.model.layout.length
        return terms | {"prior_gradient_norm": norm}

    @torch.no_grad()
    def measure_use(self, tokenizer: Tokenizer, images: ImageSet) -> Metrics:
        """Measure the use of the prologue on up to `USE_IMAGES` evenly spaced images."""
        count, share = min(USE_IMAGES, len(images)), max(1, self.training.batch // self.context.world)
        if not self.model.layout.has_prologue or count < 2:
            return {}
        tokens, class_ids = encode_evenly(self.context, tokenizer, images, count, share)
        if self.training.label_drop == 1:
            class_ids = torch.full_like(class_ids, self.model.null_class)
        self.last_use = self.use(tokens, class_ids, share)
        return {"prologue_use": self.last_use, "prologue_use_images": float(count)}

    @torch.no_grad()
    def use(self, tokens: TokenIds, class_ids: Tensor, batch: int) -> float:
        """The rise of the EMA prior's visual cross-entropy when the images exchange their prologues (METHOD §1).

        In nats per image; `batch` images at a time. The exchange is one cycle through all images, the same each time.
        """
        order = torch.randperm(len(tokens), generator=torch_stream(self.context.config.seed, "prologue use"))
        others = torch.empty_like(order)
        others[order] = order.roll(1)
        exchanged = TokenIds(tokens.prologue[others.to(tokens.prologue.device)], tokens.visual)
        return self._visual_nats(exchanged, class_ids, batch) - self._visual_nats(tokens, class_ids, batch)

    def _visual_nats(self, tokens: TokenIds, class_ids: Tensor, batch: int) -> float:
        layout, prior = self.model.layout, self.learner.ema_model
        total = 0.0
        for start in range(0, len(tokens), batch):
            rows = slice(start, start + batch)
            sequence = layout.join(tokens[rows])
            with self.context.accelerator.autocast():
                terms = cross_entropy_terms(prior(sequence, class_ids[rows]), sequence, layout)
            total += float(terms.visual) * layout.length * len(sequence)
        return total / len(tokens)

    def _dropped(self, step: int, who: str) -> Tensor:
        """Samples whose visual inputs are hidden in this step of `who`."""
        name = f"visual dropout of the {who} step"
        return self.context.chance(self.dropout.at(step), step, self.training.batch, name)
