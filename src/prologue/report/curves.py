"""Training curves of one or more runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prologue.config import RunConfig
from prologue.models.sequence import SequenceLayout
from prologue.report.figures import Curve, line_chart
from prologue.report.page import Picture

EXPLAINED = (
    "Stage 1 trains the tokenizer together with a small prior, whose cross-entropy is the loss of the prologue; half "
    "of its batch has the prologue alone. Stage 2 trains the prior that samples images. Each point is one batch."
)


@dataclass(frozen=True)
class Trained:
    """A run's configuration, the records of its `metrics.jsonl`, and its name in legends."""

    name: str
    config: RunConfig
    metrics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Chart:
    file: str
    title: str
    stage: str
    unit: str
    """`T`: values per token are multiplied by the sequence length."""
    wanted: tuple[tuple[str, str], ...]


_CROSS_ENTROPIES = (("prologue", "ce_prologue"), ("visual", "ce_visual"))
_CHARTS = (
    _Chart("curve-reconstruction", "Stage 1: reconstruction losses", "tokenizer", "1", (("L1", "l1"), ("VQ", "vq"))),
    _Chart(
        "curve-usage",
        "Stage 1: codes in use, %",
        "tokenizer",
        "%",
        (("visual", "visual_usage"), ("prologue", "prologue_usage")),
    ),
    _Chart("curve-prologue", "Stage 1: cross-entropy, nats per image", "tokenizer", "T", _CROSS_ENTROPIES),
    _Chart(
        "curve-prior",
        "Stage 2: cross-entropy, nats per image",
        "prior",
        "T",
        (*_CROSS_ENTROPIES, ("visual, held-out images", "held_out_ce_visual")),
    ),
)


def training_curves(runs: Sequence[Trained]) -> list[Picture]:
    """One chart for each kind of loss in the logs.

    Of two runs the second is dashed. Of more runs each has its colour, and the second quantity is dashed.
    """
    pictures = []
    for chart in _CHARTS:
        curves = []
        for number, run in enumerate(runs):
            for order, (label, key) in enumerate(chart.wanted):
                points = _points(chart, run, key)
                if len(points) < 2 or (key == "ce_prologue" and not run.config.tokenizer.prologue_tokens):
                    continue
                x, y = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
                legend = f"{label}, {run.name}" if len(runs) > 1 else label
                colour, dashed = (order, number > 0) if len(runs) < 3 else (number, order > 0)
                curves.append(Curve(legend, x, y, colour, dashed))
        if curves:
            pictures.append(Picture(chart.file, line_chart(chart.title, "step", curves, zero=True), chart.title))
    return pictures


def _points(chart: _Chart, run: Trained, key: str) -> list[tuple[float, float]]:
    factor = {"1": 1.0, "%": 100.0, "T": float(SequenceLayout.of(run.config.tokenizer).length)}[chart.unit]
    records = [record for record in run.metrics if record.get("stage") == chart.stage]
    return [(record["step"], record[key] * factor) for record in records if record.get(key) is not None]
