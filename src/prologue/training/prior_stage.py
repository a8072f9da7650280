"""Stage 2: the class-conditional prior on stored tokens (METHOD §8)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prologue.config import PriorTraining
from prologue.data.order import batch_indices, batch_positions
from prologue.data.token_store import TokenStore
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout, TokenIds
from prologue.models.tokenizer import Tokenizer
from prologue.training.context import Context
from prologue.training.held_out import BestPrior
from prologue.training.learner import Learner
from prologue.training.loop import Metrics
from prologue.training.microbatches import add_cross_entropy
from prologue.training.snapshots import save_samples
from prologue.utils.rng import derive_seed, numpy_stream
from prologue.utils.transfer import send


class PriorStage:
    """Trains the prior that is saved with the run."""

    name = "prior"

    def __init__(self, context: Context, store: TokenStore) -> None:
        self.context, self.store = context, store
        self.training: PriorTraining = context.config.prior_training
        self.steps, self.batch = self.training.steps, self.training.batch
        options = context.config.prior
        layout = SequenceLayout.of(context.config.tokenizer, options.prologue)
        config = options.sized(layout.config, context.data.num_classes)
        at_once = self.batch // context.world // self.training.accumulate
        self.product = (at_once * layout.length, config.transformer.width)
        self.model = Prior(config, derive_seed(context.config.seed, "initial"))
        self.learner = context.learner(
            "prior", self.model, self.training.optimizer, self.steps, self.training.ema_half_life
        )
        self.tokenizer: Tokenizer | None = None
        self.best: BestPrior | None = None
        if self.training.keep_best_every and len(context.data.validation):
            self.best = BestPrior(context, self.ema_model())

    def step(self, step: int) -> Metrics:
        context, layout = self.context, self.model.layout
        tokens, labels = self._tokens(step)
        sequence = send(layout.join(tokens), context.device)
        null = context.chance(self.training.label_drop, step, self.batch, "label drop of the prior")
        class_ids = send(labels, context.device).masked_fill(null, self.model.null_class)
        dropped = None
        if self.training.visual_dropout and layout.has_prologue:
            dropped = context.chance(self.training.visual_dropout, step, self.batch, "visual dropout of the prior")
        context.set_dropout_stream(self.model, "dropout of the prior", step)
        self.model.train()
        terms = add_cross_entropy(context, self.learner, layout, sequence, class_ids, dropped, self.training.accumulate)
        norm = self.learner.update()
        done = step + 1
        if self.best is not None and (done % self.training.keep_best_every == 0 or done == self.steps):
            self.best.evaluate(done, self.ema_model())
        return terms | {"gradient_norm": norm}

    @property
    def learners(self) -> dict[str, Learner]:
        return {"prior_training.optimizer": self.learner}

    def _tokens(self, step: int) -> tuple[TokenIds, Tensor]:
        """The tokens of this process at `step`: images in the data order, a random view of each."""
        context = self.context
        place = (step, self.batch, context.rank, context.world)
        seed = derive_seed(context.config.seed, "prior stage")
        indices = batch_indices(seed, step, self.batch, len(self.store), context.rank, context.world)
        first = batch_positions(*place)
        draws = numpy_stream(seed, "view", step).integers(self.store.views, size=self.batch)
        offset = first.start - step * self.batch
        tokens, labels = self.store.get(indices, np.asarray(draws[offset : offset + len(indices)]))
        return self.model.layout.kept(tokens), labels

    def summary(self, step: int) -> tuple[Metrics, list[str]]:
        rate = self.learner.optimizer.param_groups[0]["lr"]
        metrics: Metrics = {"learning_rate": rate}
        if self.best is None:
            return metrics, []
        return metrics | self.best.metrics(), self.best.sentences(self.steps) if step + 1 == self.steps else []

    def state(self) -> dict[str, Tensor]:
        return self.learner.state() | (self.best.state() if self.best is not None else {})

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.learner.load_state(tensors)
        if self.best is not None:
            self.best.load_state(tensors)

    def warm_start(self, step: int) -> None:
        self.learner.warm_start(Prior.from_pretrained(self.context.run.prior_folder), step)

    def ema_model(self) -> Prior:
        """The EMA prior."""
        model = self.learner.ema_model
        assert isinstance(model, Prior)
        return model

    def snapshot(self, step: int) -> Metrics:
        """Save samples."""
        context = self.context
        if self.tokenizer is None:
            self.tokenizer = Tokenizer.from_pretrained(context.run.tokenizer_folder).to(context.device)
        save_samples(context, self.tokenizer, self.ema_model(), step)
        return {}

    def finish(self) -> None:
        """Write the EMA prior of the last step, or the one with the lowest cross-entropy on held-out images."""
        run = self.context.run
        if self.best is None:
            self.ema_model().save_pretrained(run.prior_folder)
            return
        self.best.model.save_pretrained(run.prior_folder)
        run.set_stage(self.name, kept_step=self.best.step)
