"""Gradient accumulation: a batch is computed as several microbatches in turn, to save memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prologue.errors import ConfigError
from prologue.models.sequence import SequenceLayout
from prologue.training.context import Context
from prologue.training.learner import Learner
from prologue.training.loop import Metrics
from prologue.training.losses import cross_entropy_terms


def microbatches(count: int, number: int) -> list[slice]:
    """Split `count` rows into `number` equal slices; raises a `ConfigError` if this is not possible."""
    if count % number:
        raise ConfigError(
            f"{count} images of a process do not divide into {number} equal parts: "
            "choose a batch that is a multiple of accumulate times the number of processes"
        )
    size = count // number
    return [slice(start, start + size) for start in range(0, count, size)]


def averaged(metrics: Sequence[Metrics]) -> Metrics:
    """The mean of each metric over the microbatches that have it."""
    if len(metrics) == 1:
        return metrics[0]
    names = dict.fromkeys(name for each in metrics for name in each)
    found = {name: [torch.as_tensor(each[name]) for each in metrics if name in each] for name in names}
    return {name: torch.stack(values).mean() for name, values in found.items()}


def add_cross_entropy(
    context: Context,
    learner: Learner,
    layout: SequenceLayout,
    sequence: Tensor,
    class_ids: Tensor,
    dropped: Tensor | None,
    accumulate: int,
) -> Metrics:
    """Add the gradients of a prior's cross-entropy over a batch to `learner`, and return the terms."""
    rows = microbatches(len(sequence), accumulate)
    each: list[Metrics] = []
    for part in rows:
        with learner.no_sync(part is rows[-1]):
            with context.accelerator.autocast():
                hidden = None if dropped is None else dropped[part]
                logits = learner.wrapped(sequence[part], class_ids[part], visual_dropout=hidden)
                terms = cross_entropy_terms(logits, sequence[part], layout)
            context.accelerator.backward(terms.total / len(rows))
        each.append(terms.metrics() | {"loss": terms.total.detach()})
    return averaged(each)
