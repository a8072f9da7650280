"""Charts as images: readable on a phone, with colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from PIL import Image

COLOURS = ("#2f6fb3", "#d1782c", "#3f8f5f", "#8a5aa8", "#6b7280")
INK = "#374151"
_GRID = "#e5e7eb"
_MAP = "cividis"
_MOST_NUMBERS = 144
"""Cells of a heat map up to which it shows numbers."""


def panels(
    count: int = 1,
    inches: tuple[float, float] = (6.4, 3.6),
    title: str = "",
    columns: int = 1,
    heights: Sequence[float] | None = None,
    **options: Any,
) -> tuple[Any, list[Any]]:
    """A figure with `count` axes, `columns` of them side by side, and a common title."""
    from matplotlib.figure import Figure  # not pyplot, whose state is global

    figure = Figure(figsize=inches, dpi=150, layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13)
    table = figure.subplots(-(-count // columns), columns, squeeze=False, height_ratios=heights, **options)
    found = list(table.flat)
    for axes in found[count:]:
        axes.set_axis_off()
    return figure, found[:count]


def style_axes(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """Set grid, spines and number size, the title of the panel and the labels of its axes."""
    axes.tick_params(colors=INK, labelsize=11)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9ca3af")
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=13)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)


def add_legend(axes: Any, **options: Any) -> None:
    """Add the legend of the panel."""
    axes.legend(frameon=False, labelcolor=INK, **options)


def error_bars(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> Float64[np.ndarray, "2 n"]:
    """Lengths of error bars below and above the values; missing ends have length 0."""
    middle, *ends = (np.asarray(each, dtype=np.float64) for each in (values, low, high))
    lengths: Float64[np.ndarray, "2 n"] = np.nan_to_num(np.clip([middle - ends[0], ends[1] - middle], 0, None))
    return lengths


def picture_of(figure: Any) -> Image.Image:
    """Render a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as image:
        return image.convert("RGB")


@dataclass(frozen=True)
class Curve:
    """A named line, dashed on demand."""

    name: str
    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]
    colour: int = 0
    dashed: bool = False


def line_chart(title: str, x_label: str, curves: Sequence[Curve], zero: bool = False) -> Image.Image:
    """Lines on common axes, each pale with its running mean on top. With `zero` the y axis starts at 0."""
    figure, (axes,) = panels()
    style_axes(axes, title, x_label)
    for curve in curves:
        style: dict[str, Any] = {
            "color": COLOURS[curve.colour % len(COLOURS)],
            "linestyle": "--" if curve.dashed else "-",
        }
        axes.plot(curve.x, curve.y, alpha=0.22, linewidth=1.0, **style)
        axes.plot(curve.x, running_mean(curve.y), linewidth=2.2, label=curve.name or None, **style)
    if zero:
        axes.set_ylim(bottom=0)
    if any(curve.name for curve in curves):
        add_legend(axes)
    return picture_of(figure)


def running_mean(values: Float64[np.ndarray, " n"], part: float = 0.05) -> Float64[np.ndarray, " n"]:
    """The mean over a centred window of `part` of all values; the window is narrower at the ends."""
    reach = int(len(values) * part / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    near = np.minimum(np.minimum(places, places[::-1]), reach)
    out: Float64[np.ndarray, " n"] = (sums[places + near + 1] - sums[places - near]) / (2 * near + 1)
    return out


@dataclass(frozen=True)
class Bars:
    """One value per label, with the ends of its interval."""

    name: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def bar_chart(title: str, labels: Sequence[str], groups: Sequence[Bars], whole: float | None = None) -> Image.Image:
    """Groups of bars side by side with error bars; `whole` is the largest possible value."""
    figure, (axes,) = panels()
    style_axes(axes, title)
    width = 0.8 / len(groups)
    for number, bars in enumerate(groups):
        places = np.arange(len(labels)) + (number - (len(groups) - 1) / 2) * width
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": bars.name}
        reach = error_bars(bars.values, bars.low, bars.high)
        axes.bar(places, bars.values, width * 0.92, yerr=reach, error_kw={"ecolor": INK, "elinewidth": 1.2}, **style)
    turned = len(labels) > 5
    axes.set_xticks(range(len(labels)), labels, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_ylim(0, None if whole is None else 1.2 * whole)
    if whole is not None:
        axes.set_yticks(np.linspace(0, whole, 6))
    axes.grid(axis="x", visible=False)
    add_legend(axes, ncols=len(groups), loc="upper center", bbox_to_anchor=(0.5, 1.0))
    return picture_of(figure)


def draw_map(axes: Any, values: Float64[np.ndarray, "rows columns"], most: float, numbers: str = "") -> Any:
    """Draw values as colours from 0 to `most`, row 0 on top, and as numbers in the format `numbers`."""
    shown = axes.imshow(values, cmap=_MAP, vmin=0, vmax=most, aspect="auto" if numbers else "equal")
    for (row, column), value in np.ndenumerate(values) if numbers and values.size <= _MOST_NUMBERS else ():
        ink = "white" if value < most / 2 else "black"
        axes.text(column, row, f"{value:{numbers}}", ha="center", va="center", color=ink, fontsize=9)
    axes.tick_params(colors=INK, labelsize=10, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return shown


def colour_bar(figure: Any, shown: Any, axes: Sequence[Any], label: str, **options: Any) -> None:
    """Add the colour bar of maps that have a common scale."""
    bar = figure.colorbar(shown, ax=axes, **({"shrink": 0.9, "pad": 0.02} | options))
    bar.set_label(label, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=10)
    bar.outline.set_visible(False)


def heat_map(
    title: str, x_label: str, y_label: str, values: Float64[np.ndarray, "rows columns"], unit: str
) -> Image.Image:
    """A table of values as colours, and as numbers if there are few; `unit` labels the colour bar."""
    rows, columns = values.shape
    inches = (min(9.0, 3.2 + 0.45 * max(columns, 6)), min(9.0, 1.9 + 0.45 * max(rows, 3)))
    figure, (axes,) = panels(1, inches, title)
    shown = draw_map(axes, values, float(values.max()), ".3g")
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks(range(0, count, math.ceil(count / 16)))
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    colour_bar(figure, shown, [axes], unit)
    return picture_of(figure)


def grid_maps(
    title: str, names: Sequence[str], maps: Float64[np.ndarray, "n rows columns"], unit: str, columns: int = 4
) -> Image.Image:
    """Maps over the image, one panel per name, with a common scale of colours."""
    across = min(columns, len(maps))
    down = math.ceil(len(maps) / across)
    tall = min(2.0, max(0.5, maps.shape[1] / maps.shape[2]))
    inches = (max(5.6, 1.9 * across + 1.5), (1.9 * tall + 0.35) * down + 0.6)
    figure, shown_in = panels(len(maps), inches, title, across)
    most = float(maps.max()) or 1.0
    for axes, name, values in zip(shown_in, names, maps, strict=True):
        shown = draw_map(axes, values, most)
        axes.set_title(name, color=INK, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
    colour_bar(figure, shown, shown_in, unit)
    return picture_of(figure)
