"""From the bytes of an image file to an upright RGB picture of 8 bits."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from prologue.data.pillow import OpenPicture, TooManyPixels, orientation_of
from prologue.errors import DataError

_WHOLE_RANGE = 1 << 16
_FORMATS_OF_RULE_1 = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class Decoded(NamedTuple):
    """An upright RGB picture, and whether its file holds further frames or pages."""

    image: Image.Image
    has_frames: bool


class Header(NamedTuple):
    """(rows, columns) of the upright picture, and whether its file holds further frames or pages."""

    size: tuple[int, int]
    has_frames: bool


def decode(data: bytes, name: str, background: tuple[int, int, int], max_pixels: int | None = None) -> Decoded:
    """The first picture in `data`, turned as its metadata say, transparency composited on `background`.

    Metadata that cannot be read are ignored. Raises `DataError` naming `name` if the pixels cannot be decoded to the
    last one, or are more than `max_pixels`.
    """
    try:
        picture = OpenPicture(data, max_pixels)
        with picture.image:
            image = picture.upright(to_rgb(picture.load(), background))
            return Decoded(image, picture.has_frames)
    except Exception as error:  # damaged files make the decoders raise nearly everything
        raise _refused(name, error) from error


def read_header(data: bytes, name: str, max_pixels: int | None = None) -> Header:
    """What the header of a file says, without decoding it. Raises `DataError` as `decode`."""
    try:
        picture = OpenPicture(data, max_pixels)
        with picture.image as image:
            lying = picture.orientation in (5, 6, 7, 8)
            size = (image.width, image.height) if lying else (image.height, image.width)
            return Header(size, picture.has_frames)
    except Exception as error:  # as above
        raise _refused(name, error) from error


def require_readable_by_rule_1(data: bytes, name: str) -> None:
    """Raise `DataError` for a file that the first versions took for damaged, because of its metadata or format.

    A run of theirs that skipped such files must go on without them.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS_OF_RULE_1) as image:
            image.load()
            image.getexif()
    except Exception as error:  # as above
        raise _refused(name, error) from error


def damaged(name: str, reason: str) -> DataError:
    """The error for a file that cannot be read, with the way out."""
    return DataError(
        f"{name} cannot be read as an image ({reason.split(' <_io')[0]}): replace or remove it, or pass "
        "--data.skip-damaged true to leave such files out and list them"
    )


def _refused(name: str, error: Exception) -> DataError:
    if isinstance(error, TooManyPixels):
        return DataError(
            f"{name} is too large: {error}. Make it smaller, or raise the limit with --data.max-pixels {error.pixels}"
        )
    return damaged(name, str(error) or type(error).__name__)


def upright_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow image as upright RGB, as `decode` makes it from a file."""
    image.load()  # a TIFF turns itself here
    turn = orientation_of(image)
    rgb = to_rgb(image, background)
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode as RGB: 16-bit grey scaled to 8 bits, alpha and transparent colours composited.

    Raises `DataError` for pixels whose range is unknown: floating-point numbers, and integers beyond 16 bits.
    """
    if image.mode == "F":
        raise DataError(
            "the pixels are floating-point numbers, whose range is unknown: convert the picture to 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        image = _narrow(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16, I;16B, I) as L, or LA where a grey level is declared transparent."""
    levels = np.asarray(image).astype(np.int64)
    if levels.size and not 0 <= levels.min() <= levels.max() < _WHOLE_RANGE:
        raise DataError(
            f"the pixels lie in {levels.min()} to {levels.max()}, beyond 16 bits: convert the picture to 8 or 16 bits"
        )
    grey = Image.fromarray(np.clip((levels + 128) // 257, 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))
