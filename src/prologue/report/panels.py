"""Figures of one chart or of several panels, in the look of all charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prologue.report.figures import INK, style_axes


def blank_figure(title: str) -> tuple[Any, Any]:
    """A figure of one chart, and its axes."""
    figure, (axes,) = blank_panels(1, (6.4, 3.6))
    dressed(axes, title)
    return figure, axes


def dressed(axes: Any, title: str) -> None:
    """Give a chart its title, its grid and the look of all others."""
    axes.set_title(title, loc="left", color=INK, fontsize=13)
    style_axes(axes)


def blank_panels(
    count: int, inches: tuple[float, float], heights: Sequence[float] | None = None, columns: int = 1
) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, `columns` of them side by side, and their axes; places left over are empty."""
    from matplotlib.figure import Figure  # not pyplot, whose state is global

    figure = Figure(figsize=inches, dpi=150, layout="constrained", facecolor="white")
    table = figure.subplots(-(-count // columns), columns, squeeze=False, height_ratios=heights)
    panels = list(table.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]
