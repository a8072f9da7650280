"""The prior of stage 1, whose cross-entropy shapes the prologue (METHOD §7)."""

from __future__ import annotations

from torch import Tensor

from prologue.config import PriorConfig, PriorOptions
from prologue.prior import Prior
from prologue.rng import derive_seed
from prologue.sequence import SequenceLayout, TokenIds
from prologue.tokenizer import Encoding
from prologue.training.context import Context
from prologue.training.loop import Metrics, frozen_call
from prologue.training.losses import CrossEntropy, cross_entropy_terms


class StageOnePrior:
    """The prior of stage 1: fixed while it teaches the encoder, then updated on the ids."""

    def __init__(self, context: Context, options: PriorOptions) -> None:
        training = context.config.tokenizer_training
        self.context, self.training = context, training
        layout = SequenceLayout.of(context.config.tokenizer)
        config = PriorConfig(
            layout.config, context.data.num_classes, options.transformer, options.tied, options.dropout
        )
        self.model = Prior(config, derive_seed(context.config.seed, "stage-one prior"))
        self.learner = context.learner(
            "prior", self.model, training.prior, training.steps, training.prior_ema_half_life
        )
        self.last_cost: Tensor | None = None

    def encoder_terms(self, step: int, encoding: Encoding, class_ids: Tensor) -> CrossEntropy:
        """The cross-entropy whose gradient reaches the encoder through the prologue's one-hot (METHOD §7)."""
        assert encoding.prologue is not None
        layout = self.model.layout
        sequence = layout.pack(encoding.tokens)
        self.model.eval()
        logits = frozen_call(
            self.model,
            sequence,
            class_ids,
            visual_dropout=self._dropped(step, "encoder"),
            prologue_one_hot=encoding.prologue.one_hot,
        )
        self.model.train()
        return cross_entropy_terms(logits, sequence, layout)

    def step(self, step: int, tokens: TokenIds, class_ids: Tensor) -> Metrics:
        """One update on the ids, everything looked up."""
        layout = self.model.layout
        sequence = layout.pack(tokens)
        self.context.set_dropout_stream(self.model, "stage-one dropout", step)
        dropped = self._dropped(step, "prior") if layout.has_prologue else None
        with self.context.accelerator.autocast():
            logits = self.learner.wrapped(sequence, class_ids, visual_dropout=dropped)
            terms = cross_entropy_terms(logits, sequence, layout)
        self.context.accelerator.backward(terms.total)
        norm = self.learner.update()
        metrics = terms.metrics()
        self.last_cost = (terms.prologue + terms.eos).detach() * layout.length
        return metrics | {"prior_gradient_norm": norm}

    def _dropped(self, step: int, who: str) -> Tensor:
        return self.context.chance(
            self.training.visual_dropout, step, self.training.batch, f"visual dropout of the {who} step"
        )
