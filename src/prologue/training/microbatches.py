"""A batch in parts that are computed one after another, so that they need less memory; their gradients add up."""

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


def parts_of(count: int, parts: int) -> list[slice]:
    """`count` rows in so many equal parts; a count that does not divide is a `ConfigError`."""
    if count % parts:
        raise ConfigError(
            f"{count} images of a process do not divide into {parts} equal parts: "
            "choose a batch that is a multiple of accumulate times the number of processes"
        )
    size = count // parts
    return [slice(start, start + size) for start in range(0, count, size)]


def averaged(metrics: Sequence[Metrics]) -> Metrics:
    """Each metric's mean over the parts that have it."""
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
    parts: int,
) -> Metrics:
    """Leave the gradients of a prior's cross-entropy of a whole batch with `learner`; the terms come back."""
    rows = parts_of(len(sequence), parts)
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
