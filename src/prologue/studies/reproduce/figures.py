"""The figures in the tables of a study: their place in a result, their format, and their mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prologue.studies.reproduce.claims import Results, figure, text_figure
from prologue.studies.reproduce.pieces import Result
from prologue.studies.reproduce.scales import VARIANTS, Name
from prologue.studies.reproduce.verdicts import estimate


@dataclass(frozen=True)
class Figure:
    """A figure in the tables: its place in a result, its format, and the scale on which seeds are averaged."""

    label: str
    path: str
    style: str = ".3g"
    factor: float = 1.0
    logarithmic: bool = False
    """Average logarithms over seeds, and compare variants by ratios."""
    named: str | None = None
    """Path of the name of the measure, which replaces `{}` in the label."""
    over: str | None = None
    """Path of a divisor."""

    def value(self, result: Result) -> float | None:
        found, unit = figure(result, self.path), 1.0 if self.over is None else figure(result, self.over)
        return None if found is None or not unit else self.factor * found / unit

    @property
    def share(self) -> bool:
        """Whether the figure is a rate in per cent."""
        return self.factor == 100

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range of a rate in per cent. None for other figures."""
        return (0.0, 100.0) if self.share else None

    def title(self, results: Results) -> str:
        """The label with the name of the measure."""
        if self.named is None:
            return self.label
        names = (text_figure(result, self.named) for result in results.values())
        return self.label.format(next((name for name in names if name), "?"))


RECONSTRUCTION = (
    Figure("PSNR, dB", "reconstruction.psnr", ".2f"),
    Figure("r{}", "reconstruction.fd", logarithmic=True, named="reconstruction.fd_name"),
    Figure("r{}", "reconstruction.kid", ".4f", named="reconstruction.kid_name"),
    Figure("class recognised, %", "recognition.rate", ".1f", 100),
    Figure("codes in use, %", "reconstruction.visual_usage", ".1f", 100),
    Figure("rFD / unguided gFD", "reconstruction.fd", ".2f", logarithmic=True, over="unguided.fd"),
)
GENERATION = tuple(
    part
    for kind in ("unguided", "guided")
    for part in (
        Figure(f"g{{}}, {kind}", f"{kind}.fd", logarithmic=True, named=f"{kind}.fd_name"),
        Figure(f"g{{}}, {kind}", f"{kind}.kid", ".4f", named=f"{kind}.kid_name"),
        Figure(f"class recognised, {kind}, %", f"{kind}.recognition.rate", ".1f", 100),
    )
)
CARRIED = (
    Figure("cost", "likelihood.cost", ".2f"),
    Figure("diversity", "likelihood.diversity", ".2f"),
    Figure("use", "likelihood.use", ".2f"),
    Figure("gain", "likelihood.gain", ".2f"),
    Figure("all tokens", "likelihood.nats", ".1f"),
    Figure("entropy of the visual ids", "likelihood.visual_entropy", ".1f"),
)
INSIDE = (
    Figure("probe of the prologue, %", "probe.prologue", ".1f", 100),
    Figure("probe of as many first visual tokens, %", "probe.visual_first", ".1f", 100),
    Figure("chance, %", "probe.chance", ".1f", 100),
    Figure("layout: within / between prologues", "layout.coarse_ratio", ".3f", logarithmic=True),
)
MEMORISED = (
    Figure("samples very near a training image, %", "unguided.memorisation.coarse_share", ".2f", 100),
    Figure("the same if they were like held-out images, %", "unguided.memorisation.coarse_share_expected", ".2f", 100),
    Figure("the same of copies, %", "unguided.memorisation.coarse_copies_share", ".1f", 100),
)
ALL = tuple(each for each in (*RECONSTRUCTION, *GENERATION, *CARRIED, *INSIDE, *MEMORISED) if each.over is None)
"""All measured figures, without those that are computed from others."""


def variants_of(results: Results) -> list[Name]:
    """The variants with results, in the order of the tables."""
    there = {piece.variant for piece in results}
    return [name for name in VARIANTS if name in there]


def by_seed(results: Results, variant: Name, shown: Figure) -> dict[int, float]:
    """The values of a figure for the seeds of a variant that have it."""
    values = {piece.seed: shown.value(result) for piece, result in results.items() if piece.variant == variant}
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def cell_figures(
    values: Sequence[float], logarithmic: bool, bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Mean and interval within `bounds`. Logarithms are averaged if asked and if all values are positive."""
    logs = logarithmic and all(value > 0 for value in values)
    found = estimate([math.log(value) for value in values] if logs else list(values))

    def back(value: float | None) -> float | None:
        if value is None:
            return None
        plain = math.exp(value) if logs else value
        return plain if bounds is None else min(max(plain, bounds[0]), bounds[1])

    return {"n": found.n, "mean": back(found.mean), "low": back(found.low), "high": back(found.high)}
