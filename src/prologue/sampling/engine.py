"""Runs a prior for the decode loop: static cache, prefill, and the step of one position, compiled or eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prologue.models.prior import Prior
from prologue.models.sequence import Segment
from prologue.models.transformer import LayerCache
from prologue.sampling.compiling import Compiler
from prologue.sampling.draw import DrawRule, draw, gumbel_noise
from prologue.sampling.graphs import Draw, Graph, Logits, Step
from prologue.utils.private_api import mark_dynamic

_FEWEST_SLOTS = 2
"""The compiler specialises a graph for sizes 0 and 1."""


class Engine:
    """Runs one prior. With a `compiler`, the steps of the visual segment are compiled.

    Each row count has its own graph, which serves all positions. A compiled graph holds a copy of the weights; `begin`
    drops the graphs when the weights have changed. Every batch uses the same cache, so one thread at a time may use
    an engine.
    """

    def __init__(self, prior: Prior, compiler: Compiler | None = None) -> None:
        self.prior = prior
        self.compiler = compiler
        self._graphs: dict[tuple[type[Graph], int, bool], Callable[..., Any]] = {}
        self._state: tuple[tuple[int, int], ...] = ()
        self._cache: Tensor | None = None

    def begin(self, rows: int) -> Float[Tensor, "2 depth rows heads T d"]:
        """The cache for a new batch."""
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in self.prior.state_dict().values())
        if state != self._state:
            self._state = state
            self._graphs.clear()
            self._cache = None
        if self._cache is None or self._cache.shape[2] != rows:
            self._cache = self.prior.new_cache(rows)
        # Recorded graphs read this memory. It is zeroed because masked slots are multiplied by 0.
        return self._cache.zero_()

    def prefill(
        self,
        cache: Float[Tensor, "2 depth R heads T d"],
        class_ids: Int[Tensor, " R"],
        ids: Int[Tensor, "R t"],
        start: int,
        share: bool = True,
    ) -> Float[Tensor, "R 1 D"]:
        """Run the input positions `start…t`, where position 0 is BOS; returns the output at the last one.

        With `share`, a pass from position 0 computes equal rows once. Without it, a resampling of 4 images per prologue
        takes 1.06 times as long (8 prologue and 64 visual tokens, on a CPU).
        """
        self._begin_position()
        if start > 0:
            return self._run(cache, self.prior.embed(ids[:, start - 1 :]), start)
        rows, inverse = torch.cat([class_ids[:, None], ids], dim=1), None
        if share:
            rows, inverse = torch.unique(rows, dim=0, return_inverse=True)
            if len(rows) == len(class_ids):
                rows, inverse = rows[inverse], None
        x = torch.cat([self.prior.begin(rows[:, 0]), self.prior.embed(rows[:, 1:])], dim=1)
        if inverse is None:
            return self._run(cache, x, 0)
        own = self.prior.new_cache(len(rows))[:, :, :, :, : x.shape[1]]
        hidden = self._run(own, x, 0)
        cache[:, :, :, :, : x.shape[1]] = own[:, :, inverse]
        return hidden[inverse]

    def _run(self, cache: Tensor, x: Tensor, start: int) -> Tensor:
        layers = [LayerCache(k, v, start) for k, v in zip(*cache, strict=True)]
        return self.prior.hidden(x, layers, slice(start, start + x.shape[1]))[:, -1:]

    def step(self, cache: Tensor, ids: Int[Tensor, " R"], position: int, segment: Segment) -> Float[Tensor, "R 1 D"]:
        """Run one input position and store its keys and values."""
        graph = self._graph(Step, len(ids), segment, lambda: Step(self.prior))
        if graph is None:
            return self._run(cache, self.prior.embed(ids[:, None]), position)
        self._begin_position()
        past = cache
        if self.compiler is not None and not self.compiler.fixed_shapes:
            # Read the filled slots only; their number is a variable of the graph. With fixed shapes the graph reads
            # the whole cache, so that it can be recorded.
            past = cache[:, :, :, :, : max(_FEWEST_SLOTS, position)]
            mark_dynamic(past, 4)
        # A clone has the same strides at every step; the graph is compiled for the strides of the first call.
        hidden, new = graph(ids.clone(), torch.tensor([position], device=ids.device), past)
        cache[:, :, :, :, position : position + 1] = new
        out: Tensor = hidden
        return out

    def logits(
        self, hidden: Float[Tensor, "R 1 D"], segment: Segment, weights: Float[Tensor, "B 2"] | None
    ) -> tuple[Float[Tensor, "B V"], Tensor]:
        """Logits of a segment, valid until the next position, and whether all are finite; see `Logits`."""
        guided = weights is not None
        graph = self._graph(Logits, len(hidden), segment, lambda: Logits(self.prior, segment), guided)
        if graph is None:
            return Logits(self.prior, segment)(hidden, weights)  # type: ignore[no-any-return]
        logits, finite = graph(hidden.clone(), None if weights is None else weights.clone())
        return logits, finite.clone()  # copied: the next position overwrites the graph's results

    def draw(
        self, logits: Float[Tensor, "B V"], keys: Int[Tensor, " B"], position: int, rule: DrawRule, segment: Segment
    ) -> Int[Tensor, " B"]:
        """One id of the prior's vocabulary for each image; valid until the next position."""
        graph = None if all(rule.filtered) else self._graph(Draw, len(logits), segment, lambda: Draw(segment))
        if graph is not None:
            where = torch.tensor(position, device=keys.device)
            plain: Tensor = graph(logits, keys, where, rule.temperature.clone())
            if not any(rule.filtered):
                return plain
        noise = gumbel_noise(keys, position, segment.first_id, segment.last_id)
        ids = segment.first_id + draw(logits, noise, rule.temperature, rule.top_k, rule.top_p)
        # Each row is drawn in a way that does not depend on the other rows.
        return ids if graph is None else torch.where(rule.rows_filtered, ids, plain)

    def _begin_position(self) -> None:
        if self.compiler is not None:
            self.compiler.begin()

    def _graph(
        self, kind: type[Graph], rows: int, segment: Segment, make: Callable[[], Graph], guided: bool = False
    ) -> Callable[..., Any] | None:
        """The compiled graph for this number of rows; None outside the visual segment or if nothing is compiled."""
        if self.compiler is None or not self.compiler.takes(kind) or segment is not self.prior.layout.segments[-1]:
            return None
        key = (kind, rows, guided)
        if key not in self._graphs:
            self._graphs[key] = self.compiler.compile(make(), f"{kind.__name__.lower()} of {rows} rows")
        return self._graphs[key]
