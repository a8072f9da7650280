"""Pictures of `prologue evaluate codebook`: how often codes occur, bits by position, and images of a code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from prologue.data.pictures import labelled_grid, titled
from prologue.report.figures import COLOURS, INK, picture_of
from prologue.report.panels import blank_panels, dressed

_SEGMENTS = {"prologue": 1, "visual": 0}
"""Each with its colour."""


def usage_chart(record: dict[str, Any]) -> Image.Image:
    """Frequencies of the codes of each codebook, the most frequent first; what is not drawn is dead."""
    figure, panels = _panels(record)
    for axes, (name, colour) in zip(panels, _present(record), strict=True):
        counts, size = np.array(record[f"{name}_counts"]), record[f"{name}_codebook_size"]
        used, values = len(counts), 100 * counts / counts.sum()
        dressed(axes, f"{name.capitalize()} codebook: {used} of {size} codes used")
        axes.plot(np.arange(1, used + 1), values, color=COLOURS[colour], linewidth=2.2)
        axes.axhline(100 / size, color=INK, linestyle=":", linewidth=1.4, label="all codes alike")
        axes.axvspan(used + 0.5, size + 0.5, color="#e5e7eb", label="dead codes" if used < size else None)
        axes.set_xlim(0.5, size + 0.5)
        axes.set_yscale("log")
        # Whole decades, so that there are two labels at least.
        decades = math.floor(math.log10(values[-1]) - 0.05), math.ceil(math.log10(values[0]) + 0.05)
        axes.set_ylim(10.0 ** decades[0], 10.0 ** decades[1])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("code, the most frequent first", color=INK)
        axes.set_ylabel("tokens, %", color=INK)
        axes.legend(frameon=False, labelcolor=INK, loc="lower left")
    return picture_of(figure)


def entropy_chart(record: dict[str, Any]) -> Image.Image:
    """Bits at each position of each segment, below the most that codebook and number of images allow."""
    figure, panels = _panels(record)
    for axes, (name, colour) in zip(panels, _present(record), strict=True):
        bits = record[f"{name}_entropy_bits"]
        dressed(axes, f"{name.capitalize()} tokens: entropy by position")
        axes.bar(range(len(bits)), bits, 0.8, color=COLOURS[colour])
        most = record[f"{name}_most_bits"]
        axes.axhline(most, color=INK, linestyle=":", linewidth=1.4, label=f"most possible, {most:.1f} bits")
        axes.set_xlim(-0.6, len(bits) - 0.4)
        axes.set_xticks(range(0, len(bits), math.ceil(len(bits) / 17)))
        axes.set_ylim(0, 1.3 * most if most else 1)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("position" if name == "prologue" else "position, row by row", color=INK)
        axes.set_ylabel("bits", color=INK)
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")
    return picture_of(figure)


def code_sheet(images: Sequence[Image.Image], title: str, columns: int = 4) -> Image.Image:
    """The images of one code under its name."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return titled(labelled_grid(rows), title)


def position_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str) -> Image.Image:
    """Images of several codes of one position, a labelled row for each code."""
    columns = max(len(images) for _, images in rows)
    table = [[*images, *[None] * (columns - len(images))] for _, images in rows]
    return titled(labelled_grid(table, row_labels=[label for label, _ in rows]), title)


def _present(record: dict[str, Any]) -> list[tuple[str, int]]:
    return [(name, colour) for name, colour in _SEGMENTS.items() if f"{name}_tokens" in record]


def _panels(record: dict[str, Any]) -> tuple[Any, list[Any]]:
    count = len(_present(record))
    return blank_panels(count, (6.4, 3.1 * count))
