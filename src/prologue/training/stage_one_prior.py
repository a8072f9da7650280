"""The prior of stage 1, whose cross-entropy shapes the prologue (METHOD §7)."""

from __future__ import annotations

import torch
from torch import Tensor

from prologue.config import PriorOptions
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout, TokenIds
from prologue.models.tokenizer import Encoding
from prologue.training.context import Context
from prologue.training.loop import Metrics, frozen_call
from prologue.training.losses import CrossEntropy, cross_entropy_terms
from prologue.training.microbatches import add_cross_entropy
from prologue.training.schedule import ramp
from prologue.utils.rng import derive_seed, torch_stream


class StageOnePrior:
    """The prior of stage 1: fixed while it teaches the encoder, then updated on the ids."""

    def __init__(self, context: Context, options: PriorOptions) -> None:
        training = context.config.tokenizer_training
        self.context, self.training = context, training
        layout = SequenceLayout.of(context.config.tokenizer)
        config = options.sized(layout.config, context.data.num_classes)
        self.model = Prior(config, derive_seed(context.config.seed, "stage-one prior"))
        self.learner = context.learner(
            "prior", self.model, training.prior, training.steps, training.prior_ema_half_life
        )
        self.last_cost: Tensor | None = None

    def encoder_terms(
        self, step: int, encoding: Encoding, class_ids: Tensor, shared: bool, part: slice = slice(None)
    ) -> CrossEntropy:
        """The cross-entropy whose gradient reaches the encoder through the prologue's one-hot (METHOD §7).

        The prior is held fixed; `shared` lets the same pass give its own gradients too, for `shared_step`. `part` are
        the rows of the step's images that `encoding` is of.
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
        """One update on the gradients that `weight` times the shared passes' terms left.

        They are those of `step`: the prior has not moved since, the one-hot embeds what the ids look up, and only the
        draw of visual dropout is the encoder step's.
        """
        return self._metrics(terms, self.learner.update(weight))

    def step(self, step: int, tokens: TokenIds, class_ids: Tensor) -> Metrics:
        """One update on the ids, everything looked up."""
        layout = self.model.layout
        sequence = layout.join(tokens)
        self.context.set_dropout_stream(self.model, "stage-one dropout", step)
        dropped = self._dropped(step, "prior") if layout.has_prologue else None
        parts = self.training.accumulate
        terms = add_cross_entropy(self.context, self.learner, layout, sequence, class_ids, dropped, parts)
        del terms["loss"]  # that name is the autoencoder's
        return self._metrics(terms, self.learner.update())

    def _metrics(self, terms: Metrics, norm: Tensor) -> Metrics:
        self.last_cost = torch.as_tensor(terms["ce_prologue"] + terms["ce_eos"]) * self.model.layout.length
        return terms | {"prior_gradient_norm": norm}

    @torch.no_grad()
    def use(self, tokens: TokenIds, class_ids: Tensor, batch: int) -> float:
        """What the EMA prior's visual cross-entropy loses when every image gets another one's prologue (METHOD §1).

        Nats per image; `batch` images at a time. The exchange is one cycle through all images, the same at every call.
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
        options = self.training
        chance = options.visual_dropout * ramp(step, options.visual_dropout_start, options.visual_dropout_ramp)
        return self.context.chance(chance, step, options.batch, f"visual dropout of the {who} step")
