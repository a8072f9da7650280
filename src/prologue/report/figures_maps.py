"""Charts of maps and distributions: heat maps, ratios with intervals, cumulative shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from prologue.report.figures import COLOURS, INK, picture_of, style_axes

_MAP = "cividis"
"""Read alike with every kind of colour vision, and in grey."""
_MOST_NUMBERS = 144
"""Fields of a map up to which the numbers are written into them."""


@dataclass(frozen=True)
class Step:
    """The cumulative share of a named distribution, from its quantiles at evenly spaced levels 0…1."""

    name: str
    quantiles: Sequence[float]


@dataclass(frozen=True)
class Ratio:
    """A labelled ratio with the ends of its interval, and what it would be for chance alone."""

    label: str
    value: float
    low: float
    high: float
    chance: tuple[float, float]


def heat_map(
    title: str, x_label: str, y_label: str, values: Float64[np.ndarray, "rows columns"], unit: str
) -> Image.Image:
    """Values as colours, row 0 on top; also as numbers where there are few. `unit` labels the colour bar."""
    rows, columns = values.shape
    size = (min(9.0, 3.2 + 0.45 * max(columns, 6)), min(9.0, 1.9 + 0.45 * max(rows, 3)))
    figure = _figure(size, title)
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap=_MAP, vmin=0, aspect="auto")
    if values.size <= _MOST_NUMBERS:
        middle = float(values.max()) / 2
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=10)
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        step = math.ceil(count / 16)
        axis.set_ticks(range(0, count, step))
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    _bare(axes)
    _bar(figure, shown, [axes], unit)
    return picture_of(figure)


def grid_maps(
    title: str, names: Sequence[str], maps: Float64[np.ndarray, "n rows columns"], unit: str, columns: int = 4
) -> Image.Image:
    """Maps over the image grid on one scale of colours, a panel for each name."""
    across = min(columns, len(maps))
    down = math.ceil(len(maps) / across)
    tall = maps.shape[1] / maps.shape[2]
    figure = _figure((max(5.6, 1.9 * across + 1.5), (1.9 * min(2.0, max(0.5, tall)) + 0.35) * down + 0.6), title)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    top = float(maps.max())
    for axes, name, values in zip(panels, names, maps, strict=False):
        shown = axes.imshow(values, cmap=_MAP, vmin=0, vmax=top)
        axes.set_title(name, color=INK, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        _bare(axes)
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    _bar(figure, shown, list(panels), unit)
    return picture_of(figure)


def ratio_chart(title: str, x_label: str, ratios: Sequence[Ratio], chance: str) -> Image.Image:
    """Ratios below each other with their intervals, on a band of what `chance` would give."""
    figure = _figure((6.4, 1.7 + 0.75 * len(ratios)), title)
    axes = figure.add_subplot()
    style_axes(axes)
    for number, ratio in enumerate(ratios):
        low, high = ratio.chance
        axes.barh(number, high - low, 0.6, low, color="#cbd5e1", label=chance if number == 0 else None)
        reach = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
        axes.errorbar(
            ratio.value,
            number,
            xerr=np.clip(reach, 0, None),
            fmt="o",
            markersize=8,
            capsize=4,
            color=COLOURS[0],
            label="measured, 95 % interval" if number == 0 else None,
        )
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(ratios)), [ratio.label for ratio in ratios])
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * max(1.0, *(max(ratio.high, ratio.chance[1]) for ratio in ratios)))
    axes.set_xlabel(x_label, color=INK)
    figure.legend(frameon=False, labelcolor=INK, ncols=2, loc="outside lower center", fontsize=10)
    return picture_of(figure)


def cumulative_chart(title: str, panels: Sequence[tuple[str, Sequence[Step], float]], y_label: str) -> Image.Image:
    """Cumulative shares, one panel for each (axis label, distributions, marked value)."""
    figure = _figure((6.4, 0.5 + 2.9 * len(panels)), title)
    for number, (label, steps, marked) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, number + 1)
        style_axes(axes)
        for place, step in enumerate(steps):
            levels = np.linspace(0, 100, len(step.quantiles))
            line = {"color": COLOURS[place], "linestyle": ("-", "--", ":", "-.")[place % 4], "linewidth": 2.2}
            axes.plot(step.quantiles, levels, label=step.name, **line)
        axes.axvline(marked, color=INK, linewidth=1, label="counts as near")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        if number == 0:
            axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    return picture_of(figure)


def _figure(size: tuple[float, float], title: str) -> Any:
    from matplotlib.figure import Figure  # not pyplot, whose state is global

    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13)
    return figure


def _bare(axes: Any) -> None:
    axes.tick_params(colors=INK, labelsize=11, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bar(figure: Any, shown: Any, axes: Sequence[Any], unit: str) -> None:
    bar = figure.colorbar(shown, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(unit, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=10)
    bar.outline.set_visible(False)
