"""A sweep as a picture: one panel for each option, with the distance of every recipe above its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from prologue.report.figures import COLOURS, INK, picture_of, style_axes

_MARKERS = ("o", "D")


@dataclass(frozen=True)
class Panel:
    """An option and its values, evenly spaced in their order."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True)
class Marks:
    """Measured recipes: distances with the ends of their intervals, and the places of each in the panels."""

    name: str
    distance: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    places: Sequence[Sequence[int | None]]
    """For each panel, the number of each recipe's value in it; None for one that lies outside."""
    best: int | None = None
    """The winner among them."""


def sweep_chart(
    title: str,
    measure: str,
    panels: Sequence[Panel],
    groups: Sequence[Marks],
    default: tuple[float, float, float],
) -> Image.Image:
    """Panels one below the other. `default` is the distance and interval of the recipe that was stored before."""
    from matplotlib.figure import Figure  # not pyplot, whose state is global

    figure = Figure(figsize=(6.4, 0.6 + 2.9 * len(panels)), dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13)
    grid = figure.subplots(len(panels), 1, squeeze=False, sharey=True)
    for number, (panel, axes) in enumerate(zip(panels, grid[:, 0], strict=True)):
        style_axes(axes)
        value, low, high = default
        axes.axhspan(low, high, color=COLOURS[4], alpha=0.15, linewidth=0)
        axes.axhline(value, color=COLOURS[4], linewidth=1.5, linestyle="--", label="default before")
        for order, marks in enumerate(groups):
            _draw(axes, marks, number, order)
        turned = sum(len(value) + 2 for value in panel.values) > 60
        axes.set_xticks(
            range(len(panel.values)), panel.values, rotation=20 if turned else 0, ha="right" if turned else "center"
        )
        axes.set_xlim(-0.5, len(panel.values) - 0.5)
        axes.set_xlabel(panel.name, color=INK)
        axes.set_ylabel(measure, color=INK)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, labelcolor=INK, ncols=2, loc="outside lower left", fontsize=9)
    return picture_of(figure)


def _draw(axes: Any, marks: Marks, panel: int, order: int) -> None:
    """Points of one value side by side, so that their intervals can be told apart; finalists a little further right."""
    inside = [index for index, place in enumerate(marks.places[panel]) if place is not None]
    places = np.asarray([marks.places[panel][index] for index in inside], dtype=float)
    for value in np.unique(places):
        same = places == value
        places[same] += np.linspace(-0.14, 0.14, same.sum()) if same.sum() > 1 else 0
    places += 0.3 * order - 0.15
    distance, low, high = (np.asarray(each)[inside] for each in (marks.distance, marks.low, marks.high))
    reach = np.clip([distance - low, high - distance], 0, None)
    axes.errorbar(
        places,
        distance,
        yerr=reach,
        fmt=_MARKERS[order % 2],
        color=COLOURS[2 * order % len(COLOURS)],
        markersize=5 + 2 * order,
        elinewidth=1.2,
        capsize=2,
        label=marks.name,
    )
    if marks.best is not None and marks.best in inside:
        x = places[inside.index(marks.best)]
        style: dict[str, Any] = {"markersize": 19, "markeredgecolor": INK, "zorder": 3}
        axes.plot(x, marks.distance[marks.best], "*", color=COLOURS[1], label="best", linestyle="none", **style)
