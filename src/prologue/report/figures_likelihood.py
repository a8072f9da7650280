"""Pictures of `prologue evaluate likelihood`: bits at each position, and over the image grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from prologue.report.figures import COLOURS, INK, picture_of
from prologue.report.figures_maps import grid_maps
from prologue.report.panels import blank_figure

_COLOURS = {"prologue": 1, "eos": 4, "visual": 0}


def bits_chart(record: dict[str, Any]) -> Image.Image:
    """Mean bits at each target position, with 95 % intervals over images; the baseline's at its visual positions."""
    figure, axes = blank_figure("What the prior pays at each position")
    bits, low, high = (_list(record, f"position_bits{end}") for end in ("", "_low", "_high"))
    for name, (start, stop) in record["segments"].items():
        span, colour = np.arange(start, stop), COLOURS[_COLOURS[name]]
        label = "EOS" if name == "eos" else name
        axes.plot(span, bits[start:stop], "o-", markersize=3, linewidth=1.4, color=colour, label=label)
        axes.fill_between(span, low[start:stop], high[start:stop], color=colour, alpha=0.25, linewidth=0)
    baseline = record["position_baseline_bits"]
    if baseline is not None:
        start, stop = record["segments"]["visual"]
        axes.plot(np.arange(start, stop), baseline, "--", color=INK, linewidth=1.4, label="visual, without a prologue")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("target position", color=INK)
    axes.set_ylabel("bits", color=INK)
    axes.legend(frameon=False, labelcolor=INK, ncols=math.ceil(len(record["segments"]) / 2))
    return picture_of(figure)


def bits_maps(record: dict[str, Any], grid: tuple[int, int]) -> Image.Image:
    """Mean bits of the visual tokens over the image grid (rows, columns), beside those of the baseline."""
    start, stop = record["segments"]["visual"]
    maps = {"with the prologue" if "prologue" in record["segments"] else "visual tokens": record["position_bits"]}
    parts = [np.array(bits[start:stop], dtype=np.float64).reshape(grid) for bits in maps.values()]
    names = list(maps)
    if record["position_baseline_bits"] is not None:
        names.append("without")
        parts.append(np.array(record["position_baseline_bits"], dtype=np.float64).reshape(grid))
    return grid_maps("Bits of the visual tokens, over the image", names, np.stack(parts), "bits")


def _list(record: dict[str, Any], name: str) -> np.ndarray:
    """Values, those of the figure itself where one image gives no interval."""
    values = record[name] if record[name][0] is not None else record["position_bits"]
    return np.array(values, dtype=np.float64)
