"""OKLCH colours, and grids of coloured cells."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8


def oklch(
    lightness: Float[np.ndarray, " ..."], chroma: float | Float[np.ndarray, " ..."], hue: Float[np.ndarray, " ..."]
) -> Float[np.ndarray, "3 ..."]:
    """OKLCH colours (hue in degrees) as sRGB in 0…1, clipped to the gamut. Source: Ottosson's Oklab matrices."""
    angle = np.radians(hue)
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ]
    ).clip(0, 1)
    gamma: Float[np.ndarray, "3 ..."] = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return gamma.clip(0, 1)


def enlarge(
    cells: Float[np.ndarray, "... rows columns"], height: int, width: int
) -> Float[np.ndarray, "... height width"]:
    """Give each pixel the value of the cell that its center lies in; all cells have the same size."""
    rows, columns = cells.shape[-2:]
    return cells[..., (np.arange(height) * 2 + 1) * rows // (2 * height), :][
        ..., (np.arange(width) * 2 + 1) * columns // (2 * width)
    ]


def grainy(
    picture: UInt8[np.ndarray, "3 height width"],
    turns: Float[np.ndarray, "rows columns"],
    shifts: Float[np.ndarray, "rows columns"],
) -> UInt8[np.ndarray, "3 height width"]:
    """Turn each cell's hue by `turns` (radians around the grey axis) and shift its brightness by `shifts` (of 1)."""
    height, width = picture.shape[1:]
    turn, shift = enlarge(np.stack([turns, shifts]), height, width)
    values = picture / 255
    grey = values.mean(0)
    colour = values - grey
    # The cross product with the grey axis is the colour after a quarter turn.
    quarter = np.stack([colour[2] - colour[1], colour[0] - colour[2], colour[1] - colour[0]]) / np.sqrt(3)
    turned = colour * np.cos(turn) + quarter * np.sin(turn) + grey + shift
    noisy: UInt8[np.ndarray, "3 height width"] = (turned.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return noisy
