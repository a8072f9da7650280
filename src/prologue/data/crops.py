"""Crops of METHOD §2 to any target size (rows, columns): ADM center crop, random crop, ten-crop.

A square target gives METHOD's crops exactly. For a rectangular target, the picture is resized by the smallest factor at
which it covers the target, and then cropped.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "3 H W"]

_LEAST_SHOWN = 0.8
"""Smallest fraction of the short side that the random crop shows."""
_TEN_CROP = 1.1
_LARGEST_EXCESS = 16
"""Largest area of a resized picture, in areas of the target; above it only the window of the crop is computed."""


def pixels(image: Image.Image) -> Pixels:
    """An RGB picture as (3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def largest_random(size: tuple[int, int]) -> tuple[int, int]:
    """Largest (rows, columns) to which the random crop resizes: the target with short side ceil(size / 0.8)."""
    return _scaled(size, math.ceil(min(size) / _LEAST_SHOWN))


def ten_crop_size(size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the center crop that ten-crop cuts: int(1.1 · size)."""
    return int(_TEN_CROP * size[0]), int(_TEN_CROP * size[1])


def random_size(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """The target (rows, columns) scaled so that its short side is uniform in [size, ceil(size / 0.8)]."""
    short = min(size)
    return _scaled(size, int(rng.integers(short, math.ceil(short / _LEAST_SHOWN) + 1)))


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    rows, columns = (max(side, round(side * short / min(size))) for side in size)
    return rows, columns


def halve(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """2× box downsampling while the picture covers `size` (rows, columns) at least twice.

    A picture halved for `largest_random(size)` gives every crop of this module the same pixels as the whole picture,
    since each crop begins with the same halvings.
    """
    while image.height >= 2 * size[0] and image.width >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return image


def covering(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of `image` after it is resized to just cover `size`."""
    scale = max(size[0] / image.height, size[1] / image.width)
    return max(size[0], round(image.height * scale)), max(size[1], round(image.width * scale))


def _resize_and_cut(
    image: Image.Image, resized: tuple[int, int], top: int, left: int, size: tuple[int, int]
) -> Image.Image:
    """Bicubic resize to `resized` (rows, columns), then the window of `size` at (top, left)."""
    if resized[0] * resized[1] <= _LARGEST_EXCESS * size[0] * size[1]:
        whole = image.resize((resized[1], resized[0]), resample=Image.Resampling.BICUBIC)
        return whole.crop((left, top, left + size[1], top + size[0]))
    # A very thin picture, for example of 1 × 10,000 pixels, covers the target only at a huge size.
    down, across = image.height / resized[0], image.width / resized[1]
    right, bottom = min((left + size[1]) * across, image.width), min((top + size[0]) * down, image.height)
    box = (left * across, top * down, right, bottom)
    return image.resize((size[1], size[0]), resample=Image.Resampling.BICUBIC, box=box)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The ADM crop to `size` (rows, columns): box halvings, bicubic resize, center window. METHOD §2."""
    image = halve(image, size)
    resized = covering(image, size)
    top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    return _resize_and_cut(image, resized, top, left, size)


def random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Short side resized to a length uniform in [size, ceil(size / 0.8)], then a random window. METHOD §2."""
    covered = random_size(size, rng)
    image = halve(image, covered)
    resized = covering(image, covered)
    top = int(rng.integers(resized[0] - size[0] + 1))
    left = int(rng.integers(resized[1] - size[1] + 1))
    return _resize_and_cut(image, resized, top, left, size)


def cut_random(picture: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A random window of `size` (rows, columns)."""
    top = int(rng.integers(picture.shape[1] - size[0] + 1))
    left = int(rng.integers(picture.shape[2] - size[1] + 1))
    return np.ascontiguousarray(picture[:, top : top + size[0], left : left + size[1]])


def flip_maybe(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """The picture or its mirror image, each with probability 1/2."""
    return np.ascontiguousarray(picture[:, :, ::-1]) if rng.random() < 0.5 else picture


def with_flips(views: UInt8[np.ndarray, "V 3 H W"]) -> UInt8[np.ndarray, "2*V 3 H W"]:
    """The views, then their mirror images in the same order."""
    return np.concatenate([views, views[..., ::-1]])


def five_windows(picture: Pixels, size: tuple[int, int]) -> UInt8[np.ndarray, "5 3 H W"]:
    """The windows of `size` at top left, top right, bottom left, bottom right and center."""
    down, across = picture.shape[1] - size[0], picture.shape[2] - size[1]
    corners = ((0, 0), (0, across), (down, 0), (down, across), (down // 2, across // 2))
    return np.stack([picture[:, top : top + size[0], left : left + size[1]] for top, left in corners])
