"""From the bytes of an image file to an upright RGB picture of 8 bits."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

from prologue.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Files with these endings are images; all others are passed over."""
# A web image's ending is often wrong: the content decides, among what decodes safely.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def decode(data: bytes, name: str, background: tuple[int, int, int]) -> Image.Image:
    """The picture in `data`, turned as its EXIF says, transparency composited on `background`.

    Raises `DataError` naming `name` if it cannot be decoded to its last byte.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return to_rgb(ImageOps.exif_transpose(image), background)
    except Exception as error:  # damaged files make the decoders raise nearly everything
        raise damaged(name, str(error) or type(error).__name__) from error


def header_size(data: bytes, name: str) -> tuple[int, int]:
    """(rows, columns) of the upright picture, from the header alone. Raises `DataError` as `decode`."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # Asking a PNG for its EXIF would decode it; hardly any has a turn there.
            turn = 1 if image.format == "PNG" else image.getexif().get(ExifTags.Base.Orientation, 1)
            lying = turn in (5, 6, 7, 8)
            return (image.width, image.height) if lying else (image.height, image.width)
    except Exception as error:  # as above
        raise damaged(name, str(error) or type(error).__name__) from error


def damaged(name: str, reason: str) -> DataError:
    """The error for a file that cannot be read, with the way out."""
    return DataError(
        f"{name} cannot be read as an image ({reason.split(' <_io')[0]}): replace or remove it, or pass "
        "--data.skip-damaged true to leave such files out and list them"
    )


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode as RGB: 16-bit grey scaled to 8 bits, alpha and transparent colours composited."""
    if image.mode.startswith("I"):
        image = _narrow(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16, I;16B, I) as L, or LA where a grey level is declared transparent."""
    levels = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(np.clip((levels + 128) // 257, 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))
