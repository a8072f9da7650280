"""Pictures of `prologue evaluate probe`: accuracies of the inputs, and which factor is known where."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from prologue.report.figures import COLOURS, INK, picture_of
from prologue.report.panels import blank_figure, blank_panels

INPUT_NAMES = {
    "prologue": "prologue",
    "visual_first": "first visual tokens",
    "visual_pooled": "mean of all visual tokens",
    "pixels": "pixels",
    "random_encoder": "a random encoder's prologue",
}
_MANY = 24
"""More columns than this are told apart by their order, and a label at some of them."""


def probed(record: dict[str, Any]) -> list[str]:
    """The inputs that a record is of."""
    return [name for name in INPUT_NAMES if f"{name}_dimension" in record]


def accuracy_chart(record: dict[str, Any]) -> Image.Image:
    """Top-1 of each input with its interval, its shuffled control, and the most frequent class as chance."""
    figure, axes = blank_figure("Class read by a linear probe")
    names = probed(record)[::-1]
    places = np.arange(len(names))
    for shift, suffix, colour, label in ((0.19, "top1", 0, "true labels"), (-0.19, "control", 4, "shuffled labels")):
        value, low, high = (np.array([record[f"{n}_{suffix}{end}"] for n in names]) for end in ("", "_low", "_high"))
        reach = 100 * np.clip([value - low, high - value], 0, None)
        style: dict[str, Any] = {"color": COLOURS[colour], "label": label, "error_kw": {"ecolor": INK}}
        axes.barh(places + shift, 100 * value, 0.36, xerr=reach, **style)
    axes.axvline(100 * record["chance"], color=INK, linestyle=":", linewidth=1.4, label="most frequent class")
    axes.set_yticks(places, [fill(INPUT_NAMES[name], 16) for name in names])
    axes.set_xlim(0, 100)
    axes.set_xlabel("top-1 accuracy, % (95 % interval)", color=INK)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, labelcolor=INK, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3, fontsize=9)
    return picture_of(figure)


def factor_map(record: dict[str, Any]) -> Image.Image:
    """How far above chance each factor is read: from whole inputs, and from single positions of either segment."""
    factors = record["factors"]
    names = [factor["factor"] for factor in factors]
    inputs = probed(record)
    whole = np.array([[_skill(f, f[name]) for name in inputs] for f in factors])
    segments = [segment for segment in ("prologue", "visual") if factors[0][f"{segment}_positions"]]
    tall = 0.26 * len(names)
    count = 1 + len(segments)
    figure, panels = blank_panels(count, (6.8, count * (tall + 1.4)), [tall] * count)
    labels = [fill(INPUT_NAMES[name], 14) for name in inputs]
    image = _heatmap(panels[0], "Factors read from whole inputs", whole, names, labels)
    for panel, segment in zip(panels[1:], segments, strict=True):
        single = np.array([[_skill(f, rate) for rate in f[f"{segment}_positions"]] for f in factors])
        _heatmap(panel, f"Factors read from one {segment} token", single, names)
        panel.set_xlabel(f"{segment} position" + (", row by row" if segment == "visual" else ""), color=INK)
    bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.8, aspect=40)
    bar.set_label("accuracy, % of the way from chance to perfect", color=INK)
    return picture_of(figure)


def _skill(factor: dict[str, Any], rate: float) -> float:
    """Part of the way from chance to perfect, in percent; below chance counts as 0."""
    room = 1 - factor["chance"]
    return 100 * max(0.0, (rate - factor["chance"]) / room) if room > 0 else 0.0


def _heatmap(
    axes: Any, title: str, values: Float64[np.ndarray, "r c"], rows: list[str], columns: list[str] | None = None
) -> Any:
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    count = values.shape[1]
    if columns is not None:
        axes.set_xticks(range(count), columns)
    else:
        axes.set_xticks(range(0, count, max(1, count // 16)))
    if count <= _MANY:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return image
