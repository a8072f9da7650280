"""Upkeep of the codebooks during training: a start of the prologue codebook from data, and resets of dead codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from prologue.models.quantizers import Rows
from prologue.models.tokenizer import Encoding, Tokenizer, to_model_range
from prologue.training.codebooks import Usage
from prologue.training.context import Context
from prologue.training.learner import Learner, stored
from prologue.utils.rng import torch_stream
from prologue.utils.transfer import fetch

START_VECTORS = 64
"""Largest number of encoder outputs for each code that the prologue codebook starts from."""
START_BATCHES = 64
"""Largest number of batches from which these outputs come."""


class CodebookUpkeep:
    """Asks the quantizers for new rows, and writes these through the learner."""

    def __init__(self, context: Context, learner: Learner, model: Tokenizer) -> None:
        self.context, self.learner, self.model = context, learner, model
        self.training = context.config.tokenizer_training
        self.counts = Usage(1, model.config.codebook_size, context.device)
        """Visual ids since the last reset of dead codes."""

    @torch.no_grad()
    def start_prologue(self, step: int) -> None:
        """Start the prologue codebook from encoder outputs, at the steps `prologue_kmeans`."""
        quantizer = self.model.prologue_quantizer
        if quantizer is None or step not in self.training.prologue_kmeans:
            return
        vectors: list[Tensor] = []
        wanted = START_VECTORS * quantizer.size
        while sum(map(len, vectors)) < wanted and len(vectors) < START_BATCHES:
            pictures, _ = self.context.images(step + len(vectors), self.training.batch)
            features = self.model.features(to_model_range(pictures))[1]
            assert features is not None
            vectors.append(self.context.gather(quantizer(features).z.flatten(0, 1)))
        stream = torch_stream(self.context.config.seed, "prologue k-means", step)
        self._write("prologue_quantizer", quantizer.start_from(torch.cat(vectors)[:wanted], stream))

    @torch.no_grad()
    def count(self, step: int, visual: Int[Tensor, "B N"]) -> Callable[[], Tensor] | None:
        """Count the visual ids of all processes. At a step with a reset, start to copy the counts to the host.

        `reset_dead_codes` waits for the copy, because the draws depend on the number of dead codes. It is the only wait
        outside of log steps.
        """
        every = self.training.dead_code_reset_every
        last = self.training.dead_code_reset_until * self.training.steps
        if self.model.config.traits.post_hoc or not every or step >= last:
            return None
        self.counts.add(visual)
        return None if (step + 1) % every else fetch(self.counts.counts[0])

    @torch.no_grad()
    def reset_dead_codes(self, step: int, encoding: Encoding, counts: Callable[[], Tensor] | None) -> None:
        """Reset the visual codes that have not been used since the last reset. `counts` come from `count`."""
        if counts is None:
            return
        used = counts()
        if (used.numpy() == 0).any():
            z = self.context.gather(encoding.visual.z.detach())
            stream = torch_stream(self.context.config.seed, "revival", step)  # an older name, kept for the same draws
            self._write("visual_quantizer", self.model.visual_quantizer.reset_unused(z, used, stream))
        self.counts.reset()

    def _write(self, quantizer: str, updates: Iterable[Rows]) -> None:
        for parameter, rows, values in updates:
            self.learner.replace_rows(f"{quantizer}.{parameter}", rows, values)

    def state(self) -> dict[str, Tensor]:
        return {"dead_code_window": self.counts.counts}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        key = "revival_window" if "revival_window" in tensors else "dead_code_window"  # the name in earlier versions
        self.counts.counts.copy_(stored(tensors, key, self.counts.counts))
