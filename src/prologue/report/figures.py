"""Charts as pictures. Text is large enough for a phone, colours are told apart by colour-blind readers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

COLOURS = ("#2f6fb3", "#d1782c", "#3f8f5f", "#8a5aa8", "#6b7280")
INK = "#374151"
_GRID = "#e5e7eb"


@dataclass(frozen=True)
class Curve:
    """A named line; `dashed` for a second run that is compared with the first."""

    name: str
    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]
    colour: int = 0
    dashed: bool = False


def line_chart(title: str, x_label: str, curves: Sequence[Curve], zero: bool = False) -> Image.Image:
    """Lines over a common axis; noisy ones are drawn pale, with their running mean on top. `zero` starts y at 0."""
    figure, axes = _figure(title)
    for curve in curves:
        style: dict[str, Any] = {
            "color": COLOURS[curve.colour % len(COLOURS)],
            "linestyle": "--" if curve.dashed else "-",
        }
        smooth = running_mean(curve.y)
        axes.plot(curve.x, curve.y, alpha=0.22, linewidth=1.0, **style)
        axes.plot(curve.x, smooth, linewidth=2.2, label=curve.name or None, **style)
    if zero:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label, color=INK)
    if any(curve.name for curve in curves):
        axes.legend(frameon=False, labelcolor=INK)
    return picture_of(figure)


@dataclass(frozen=True)
class Bars:
    """A value for each label, with its interval's ends."""

    name: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def bar_chart(title: str, labels: Sequence[str], groups: Sequence[Bars], whole: float | None = None) -> Image.Image:
    """Groups of bars beside each other, with intervals; `whole` is the largest value that there can be."""
    figure, axes = _figure(title)
    width = 0.8 / len(groups)
    for number, bars in enumerate(groups):
        places = np.arange(len(labels)) + (number - (len(groups) - 1) / 2) * width
        values = np.asarray(bars.values)
        reach = np.clip([values - np.asarray(bars.low), np.asarray(bars.high) - values], 0, None)
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": bars.name}
        axes.bar(places, values, width * 0.92, yerr=reach, error_kw={"ecolor": INK, "elinewidth": 1.2}, **style)
    axes.set_xticks(
        range(len(labels)), labels, rotation=30 if len(labels) > 5 else 0, ha="right" if len(labels) > 5 else "center"
    )
    axes.set_ylim(0, None if whole is None else 1.2 * whole)
    if whole is not None:
        axes.set_yticks(np.linspace(0, whole, 6))
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, labelcolor=INK, ncols=len(groups), loc="upper center", bbox_to_anchor=(0.5, 1.0))
    return picture_of(figure)


def running_mean(values: Float64[np.ndarray, " n"], part: float = 0.05) -> Float64[np.ndarray, " n"]:
    """The mean over a centred window of `part` of all values, narrower at the ends."""
    reach = int(len(values) * part / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    near = np.minimum(np.minimum(places, places[::-1]), reach)
    out: Float64[np.ndarray, " n"] = (sums[places + near + 1] - sums[places - near]) / (2 * near + 1)
    return out


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot, whose state is global

    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=13)
    style_axes(axes)
    return figure, axes


def style_axes(axes: Any) -> None:
    """The look of every chart: grid, spines and the size of its numbers."""
    axes.tick_params(colors=INK, labelsize=11)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9ca3af")


def picture_of(figure: Any) -> Image.Image:
    """A drawn figure as an image."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as image:
        return image.convert("RGB")
