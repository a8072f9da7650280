"""Decodes the bytes of an image file to an upright 8-bit RGB picture.

Damaged metadata and Pillow's global limits do not change the pixels. Other threads and the user's own code share those
limits, so this module does not change them.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from prologue.errors import DataError

Image.init()  # registers the formats
READS_AVIF = "AVIF" in Image.OPEN and bool(features.check("avif"))
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if READS_AVIF else ()))
"""The formats that are read. They are recognised by content, since the suffix of a downloaded file is often wrong."""

_FORMATS_OF_RULE_1 = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_METADATA_LIMIT = 1 << 20
"""Bytes of expanded metadata that are searched for an orientation."""
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes each EXIF orientation upright; 1 is upright."""


class Decoded(NamedTuple):
    """An upright RGB picture, and whether its file holds more frames or pages."""

    image: Image.Image
    has_frames: bool


class Header(NamedTuple):
    """(rows, columns) of the upright picture, and whether its file holds more frames or pages."""

    size: tuple[int, int]
    has_frames: bool


def decode(data: bytes, name: str, background: tuple[int, int, int], max_pixels: int | None = None) -> Decoded:
    """The first picture in `data`, rotated by its metadata, with transparency composited on `background`.

    Metadata that cannot be read are ignored. Raises `DataError` naming `name` if a pixel cannot be decoded, or if there
    are more than `max_pixels`.
    """
    try:
        picture = OpenPicture(data, max_pixels)
        with picture.image:
            return Decoded(picture.load(background), picture.has_frames)
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise _refused(name, error) from error


def read_header(data: bytes, name: str, max_pixels: int | None = None) -> Header:
    """The facts in the header of a file, without decoding pixels. Raises `DataError` as `decode` does."""
    try:
        picture = OpenPicture(data, max_pixels)
        with picture.image as image:
            on_its_side = picture.orientation in (5, 6, 7, 8)
            size = (image.width, image.height) if on_its_side else (image.height, image.width)
            return Header(size, picture.has_frames)
    except Exception as error:  # as above
        raise _refused(name, error) from error


def require_readable_by_rule_1(data: bytes, name: str) -> None:
    """Raise `DataError` for a file that the first versions refused because of its metadata or format.

    A run that those versions started may have skipped such files. It must continue without them.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS_OF_RULE_1) as image:
            image.load()
            image.getexif()
    except Exception as error:  # as above
        raise _refused(name, error) from error


def damaged(name: str, reason: str) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(
        f"{name} cannot be read as an image ({reason.split(' <_io')[0]}): replace or remove it, or skip and list such "
        "files with --data.skip-damaged true"
    )


def _refused(name: str, error: Exception) -> DataError:
    if isinstance(error, TooManyPixels):
        return DataError(
            f"{name} is too large: {error}. Make it smaller, or raise the limit with --data.max-pixels {error.pixels}"
        )
    return damaged(name, str(error) or type(error).__name__)


def upright_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow image as upright RGB, as `decode` makes it from a file."""
    image.load()  # Pillow turns a TIFF here
    rgb = to_rgb(image, background)
    turn = _TURNS.get(_orientation(image) or 1)
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode as RGB: 16-bit grey scaled to 8 bits, alpha and transparent colours composited.

    Raises `DataError` for pixels of unknown range: floating-point numbers, and integers beyond 16 bits.
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
    """16-bit grey (modes I;16, I;16B, I) as L, or as LA if a grey level is declared transparent."""
    levels = np.asarray(image).astype(np.int64)
    if levels.size and not 0 <= levels.min() <= levels.max() < 1 << 16:
        raise DataError(
            f"the pixels lie in {levels.min()} to {levels.max()}, beyond 16 bits: convert the picture to 8 or 16 bits"
        )
    grey = Image.fromarray(np.clip((levels + 128) // 257, 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


class TooManyPixels(ValueError):
    """The picture has more pixels than the limit."""

    def __init__(self, size: tuple[int, int], limit: int) -> None:
        self.pixels = size[0] * size[1]
        super().__init__(f"it has {size[0]} x {size[1]} = {self.pixels} pixels, and the limit is {limit}")


class OpenPicture:
    """An image file whose header is read.

    Raises `TooManyPixels`, and whatever Pillow raises for a file that it cannot open.
    """

    def __init__(self, data: bytes, max_pixels: int | None = None) -> None:
        metadata: dict[str, Any] = {}
        if data.startswith(_PNG_MAGIC):
            data, metadata = _split_png(data)
        self.image = _open(io.BytesIO(data))
        if max_pixels is not None and self.image.width * self.image.height > max_pixels:
            raise TooManyPixels(self.image.size, max_pixels)
        self._frames: int | None = metadata.pop("frames", None)
        self._info = {key: self.image.info[key] for key in _ORIENTATION_KEYS if key in self.image.info} | metadata

    @property
    def orientation(self) -> int:
        """The EXIF orientation that must still be applied to the pixels: 1 (upright) to 8."""
        if self.image.format == "TIFF":  # Pillow turns these itself
            return 1
        # The XMP block still counts if the EXIF block is damaged.
        for keys in (_ORIENTATION_KEYS, ("xmp",)):
            carrier = Image.new("L", (1, 1))
            carrier.info = {key: self._info[key] for key in keys if key in self._info}
            found = _orientation(carrier)
            if found is not None:
                return found
        return 1

    @property
    def has_frames(self) -> bool:
        """Whether the file holds an animation or several pages. The second picture of an MPO is a preview."""
        if self._frames is not None:
            return self._frames > 1
        try:
            return self.image.format != "MPO" and bool(getattr(self.image, "is_animated", False))
        except Exception:  # only the first frame is read
            return False

    def load(self, background: tuple[int, int, int]) -> Image.Image:
        """Decode the first frame to its last byte, as upright RGB."""
        if self.image.format == "TIFF":
            # Pillow checks its own limit when it allocates memory. It does not allocate if the memory exists already.
            tile = getattr(self.image, "_tile_size", self.image.size)
            if tile[0] * tile[1] > (Image.MAX_IMAGE_PIXELS or tile[0] * tile[1]):
                self.image.im = Image.new(self.image.mode, tile).im
        self.image.load()
        rgb = to_rgb(self.image, background)
        turn = _TURNS.get(self.orientation)
        return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8; None if the metadata are damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds of errors for damaged EXIF
        return None
    return int(found) if found in _TURNS else 1


def _open(file: io.BytesIO) -> ImageFile.ImageFile:
    """`Image.open` without its global limit of pixels."""
    prefix = file.read(16)
    for kind in FORMATS:
        factory, accept = Image.OPEN[kind]
        if accept is not None and accept(prefix) is not True:  # a string is the reason why Pillow cannot read it
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # for `Image.open`, these mean another format
            continue
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"Pillow does not open a {kind} file with so many pixels ({error}): store it as PNG, JPEG or TIFF"
            ) from error
    raise UnidentifiedImageError("the content is no known image format, or its header is damaged")


def _split_png(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """A PNG without ancillary chunks other than transparency, and the orientation and frames that those chunks state.

    A file that ends inside a chunk of pixels stays as it is, so that Pillow refuses it.
    """
    kept, metadata = [_PNG_MAGIC], dict[str, Any]()
    position = len(_PNG_MAGIC)
    while position < len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind in _PNG_PIXELS or not re.fullmatch(rb"[A-Za-z]{4}", kind) or kind[:1].isupper():
            kept.append(data[position : position + 12 + length])
        else:
            metadata.update(_png_metadata(kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(kept), metadata


def _png_metadata(kind: bytes, content: bytes) -> Iterator[tuple[str, Any]]:
    """The orientation and frames that a chunk states, under Pillow's names."""
    if kind == b"eXIf":
        yield "exif", b"Exif\x00\x00" + content
    elif kind == b"acTL":
        yield "frames", int.from_bytes(content[:4], "big")
    elif kind in (b"tEXt", b"zTXt", b"iTXt"):
        key, _, text = content.partition(b"\0")
        name = {b"Raw profile type exif": "Raw profile type exif", b"XML:com.adobe.xmp": "xmp"}.get(key)
        if name is None:
            return
        compressed = kind == b"zTXt"
        if kind == b"zTXt":
            text = text[1:]
        elif kind == b"iTXt":
            compressed = text[:1] == b"\1"
            text = text[2:].split(b"\0", 2)[-1]
        if compressed:
            try:
                text = zlib.decompressobj().decompress(text, _METADATA_LIMIT)
            except zlib.error:
                return
        yield name, text if name == "xmp" else text.decode("latin-1")
