"""Pictures of `prologue evaluate intervention`: how much, where, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from prologue.data.pictures import labelled_grid, titled
from prologue.report.figures import COLOURS, INK, picture_of
from prologue.report.panels import blank_figure, blank_panels


def effect_chart(record: dict[str, Any]) -> Image.Image:
    """The effect of each position, beside those of other noise and of the whole prologue."""
    figure, axes = blank_figure("Exchange of one prologue token")
    parts = record["positions"]
    values, low, high = (np.array([_end(part, "effect", end) for part in parts]) for end in ("", "_low", "_high"))
    reach = np.clip([values - low, high - values], 0, None)
    axes.bar(range(len(parts)), values, 0.7, color=COLOURS[1], yerr=reach, error_kw={"ecolor": INK})
    for name, colour, style, label in (
        ("resampled", 4, "--", "other noise, same prologue"),
        ("whole", 0, "-", "whole prologue exchanged"),
    ):
        ends = [_end(record, name, end) for end in ("_low", "_high")]
        axes.axhspan(*ends, color=COLOURS[colour], alpha=0.15, linewidth=0)
        axes.axhline(record[name], color=COLOURS[colour], linestyle=style, linewidth=2, label=label)
    axes.set_xticks(range(0, len(parts), max(1, len(parts) // 16)))
    axes.set_xlabel("prologue position", color=INK)
    axes.set_ylabel("mean change of a pixel (0 to 255)", color=INK)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, labelcolor=INK, loc="upper center", bbox_to_anchor=(0.45, -0.18), ncols=2)
    return picture_of(figure)


def change_map(
    positions: Float64[np.ndarray, "p h w"], whole: Float64[np.ndarray, "h w"], resampled: Float64[np.ndarray, "h w"]
) -> Image.Image:
    """Where the image changes, by exchanged position and for both controls, on one scale."""
    maps = [*((f"position {index}", part) for index, part in enumerate(positions))]
    maps += [("whole prologue", whole), ("other noise", resampled)]
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    shape = positions.shape[1] / positions.shape[2]
    figure, panels = blank_panels(len(maps), (6.8, 1.7 * rows * min(2.0, shape) + 0.45 * rows + 1.1), columns=columns)
    figure.suptitle("Where the image changes", x=0.02, ha="left", color=INK, fontsize=13)
    most = max(float(part.max()) for _, part in maps) or 1.0
    for axes, (name, part) in zip(panels, maps, strict=True):
        image = axes.imshow(part, cmap="magma", vmin=0, vmax=most, interpolation="nearest")
        axes.set_title(name, loc="left", color=INK, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
    bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.8, aspect=40)
    bar.set_label("mean change of a pixel (0 to 255)", color=INK)
    return picture_of(figure)


def example_sheet(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str]) -> Image.Image:
    """Pairs in rows: what was sampled before, with single positions exchanged, and with all of them."""
    return titled(labelled_grid(rows, labels), "Visual tokens sampled with the same noise; the prologue changes")


def _end(record: dict[str, Any], name: str, end: str) -> float:
    """A figure's end of the interval; the figure where one pair gives none."""
    value = record[f"{name}{end}"]
    return float(record[name] if value is None else value)
