"""How the decode loop runs a prior: the static cache, prefill, and the step of one position, compiled or not."""

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
from prologue.sampling.draw import draw, gumbel_noise
from prologue.sampling.graphs import Draw, Graph, Logits, Step
from prologue.sampling.recipe import Recipe
from prologue.utils.private_api import mark_dynamic

_FEWEST_SLOTS = 2
"""Fewer slots than this would be a special case to the compiler."""


class Engine:
    """Runs one prior. With a `compiler`, steps of the visual segment go through it.

    Compiled steps hold a copy of the weights in the order their products read them; weights changed afterwards are
    noticed at the next `begin`. Row counts are compiled one by one, positions share a graph. An engine serves one
    thread at a time: its cache is the same memory for every batch.
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
        # The same memory again: recorded graphs read it where it lies. Zeros, since masked slots are multiplied by 0.
        return self._cache.zero_()

    def prefill(
        self,
        cache: Float[Tensor, "2 depth R heads T d"],
        class_ids: Int[Tensor, " R"],
        ids: Int[Tensor, "R t"],
        start: int,
    ) -> Float[Tensor, "R 1 D"]:
        """Run the input positions `start…t`, BOS being position 0; returns the output at the last one.

        Rows that are alike from the beginning are computed once.
        """
        self._begin_position()
        if start > 0:
            return self._run(cache, self.prior.embed(ids[:, start - 1 :]), start)
        alike, inverse = torch.unique(torch.cat([class_ids[:, None], ids], dim=1), dim=0, return_inverse=True)
        x = torch.cat([self.prior.begin(alike[:, 0]), self.prior.embed(alike[:, 1:])], dim=1)
        if len(alike) == len(class_ids):
            return self._run(cache, x[inverse], 0)
        own = self.prior.new_cache(len(alike))[:, :, :, :, : x.shape[1]]
        hidden = self._run(own, x, 0)
        cache[:, :, :, :, : x.shape[1]] = own[:, :, inverse]
        return hidden[inverse]

    def _run(self, cache: Tensor, x: Tensor, start: int) -> Tensor:
        layers = [LayerCache(k, v) for k, v in zip(*cache, strict=True)]
        return self.prior.hidden(x, layers, start)[:, -1:]

    def step(self, cache: Tensor, ids: Int[Tensor, " R"], position: int, segment: Segment) -> Float[Tensor, "R 1 D"]:
        """Run one input position, whose ids are given, and remember it."""
        graph = self._graph(Step, len(ids), segment, lambda: Step(self.prior))
        if graph is None:
            return self._run(cache, self.prior.embed(ids[:, None]), position)
        self._begin_position()
        past = cache
        if self.compiler is not None and not self.compiler.fixed_shapes:
            # Only what is filled is read; the length is a variable of the graph. Where shapes are fixed the whole cache
            # is read, which lets the graph be recorded.
            past = cache[:, :, :, :, : max(_FEWEST_SLOTS, position)]
            mark_dynamic(past, 4)
        # Laid out alike at every step: the graph is compiled for the strides that it saw first.
        hidden, new = graph(ids.clone(), torch.tensor([position], device=ids.device), past)
        cache[:, :, :, :, position : position + 1] = new
        out: Tensor = hidden
        return out

    def logits(self, hidden: Float[Tensor, "R 1 D"], segment: Segment, scale: float | None) -> tuple[Tensor, Tensor]:
        """Guided logits of a segment (B, V), good until the next position, and whether they are finite."""
        guided = scale is not None
        graph = self._graph(Logits, len(hidden), segment, lambda: Logits(self.prior, segment), guided)
        if graph is None:
            return Logits(self.prior, segment)(hidden, scale)  # type: ignore[no-any-return]
        logits, finite = graph(hidden.clone(), torch.tensor(scale, device=hidden.device) if guided else None)
        return logits, finite.clone()  # kept to the end, while the next position overwrites what a graph returned

    def draw(
        self, logits: Float[Tensor, "B V"], keys: Int[Tensor, " B"], position: int, recipe: Recipe, segment: Segment
    ) -> Int[Tensor, " B"]:
        """One id for each image, as the prior counts them; good until the next position."""
        temperature = recipe.segment_temperature(segment.name)
        graph = None if recipe.filtered else self._graph(Draw, len(logits), segment, lambda: Draw(segment))
        if graph is None:
            noise = gumbel_noise(keys, position, segment.first_id, segment.last_id)
            return segment.first_id + draw(logits, noise, temperature, recipe.top_k, recipe.top_p)
        where, heat = (torch.tensor(value, device=keys.device) for value in (position, temperature))
        out: Tensor = graph(logits, keys, where, heat)
        return out

    def _begin_position(self) -> None:
        if self.compiler is not None:
            self.compiler.begin()

    def _graph(
        self, kind: type[Graph], rows: int, segment: Segment, make: Callable[[], Graph], guided: bool = False
    ) -> Callable[..., Any] | None:
        """The compiled graph of so many rows; None where this is not compiled. The visual segment alone is worth it."""
        if self.compiler is None or not self.compiler.takes(kind) or segment is not self.prior.layout.segments[-1]:
            return None
        key = (kind, rows, guided)
        if key not in self._graphs:
            self._graphs[key] = self.compiler.compile(make(), f"{kind.__name__.lower()} of {rows} rows")
        return self._graphs[key]
