"""The figures of a study's tables: where each is in a result, how it is shown, and its mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prologue.studies.reproduce.claims import Results, figure, text_figure
from prologue.studies.reproduce.pieces import Result
from prologue.studies.reproduce.scales import VARIANTS, Name
from prologue.studies.reproduce.verdicts import estimate, prediction


@dataclass(frozen=True)
class Figure:
    """A figure of the tables: where it is in a result, how it is shown, and on which scale seeds are averaged."""

    label: str
    path: str
    style: str = ".3g"
    factor: float = 1.0
    logarithmic: bool = False
    """Geometric mean, and ratios between variants."""
    named: str | None = None
    """Path of the measure's name, which stands for `{}` in the label."""
    over: str | None = None
    """Path of a figure that it is divided by."""

    def value(self, result: Result) -> float | None:
        found, unit = figure(result, self.path), 1.0 if self.over is None else figure(result, self.over)
        return None if found is None or not unit else self.factor * found / unit

    @property
    def share(self) -> bool:
        """A rate, shown in per cent."""
        return self.factor == 100

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where the figure cannot leave: of rates in per cent."""
        return (0.0, 100.0) if self.share else None

    def title(self, results: Results) -> str:
        """The label with the measure's own name."""
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
"""All that were measured: none that follow from others."""


def variants_of(results: Results) -> list[Name]:
    there = {piece.variant for piece in results}
    return [name for name in VARIANTS if name in there]


def by_seed(results: Results, variant: Name, shown: Figure) -> dict[int, float]:
    """A figure of a variant's seeds, where it is there."""
    values = {piece.seed: shown.value(result) for piece, result in results.items() if piece.variant == variant}
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def cell_figures(
    values: Sequence[float], logarithmic: bool, bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Mean, interval, and prediction of one further seed; on logarithms where asked and possible, within `bounds`."""
    logs = logarithmic and all(value > 0 for value in values)
    seen = [math.log(value) for value in values] if logs else list(values)
    found, next_one = estimate(seen), prediction(seen)

    def back(value: float | None) -> float | None:
        if value is None:
            return None
        plain = math.exp(value) if logs else value
        return plain if bounds is None else min(max(plain, bounds[0]), bounds[1])

    ends = (None, None) if next_one is None else next_one
    record = {"n": found.n, "mean": back(found.mean), "low": back(found.low), "high": back(found.high)}
    return record | {"one_further_seed_low": back(ends[0]), "one_further_seed_high": back(ends[1])}
