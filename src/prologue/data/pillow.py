"""Image files through Pillow, so that their pixels alone decide: neither metadata nor Pillow's global limits do.

Pillow's limits are module globals that other threads and the user's own code share, so none of them is changed here.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

Image.init()  # registers the formats
READS_AVIF = "AVIF" in Image.OPEN and bool(features.check("avif"))
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if READS_AVIF else ()))
"""The formats that are read, recognised by content: the ending of a downloaded file is often wrong."""

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


class TooManyPixels(ValueError):
    """The picture has more pixels than the limit."""

    def __init__(self, size: tuple[int, int], limit: int) -> None:
        self.pixels = size[0] * size[1]
        super().__init__(f"it has {size[0]} x {size[1]} = {self.pixels} pixels, and the limit is {limit}")


class OpenPicture:
    """A file whose header is read. `orientation` is the EXIF number of the turn that its pixels still need."""

    def __init__(self, data: bytes, max_pixels: int | None = None) -> None:
        """Raises `TooManyPixels`, and whatever Pillow raises for a file that it cannot open."""
        metadata: dict[str, Any] = {}
        if data.startswith(_PNG_MAGIC):
            data, metadata = _png_parts(data)
        self.image = _open(io.BytesIO(data))
        if max_pixels is not None and self.image.width * self.image.height > max_pixels:
            raise TooManyPixels(self.image.size, max_pixels)
        self._frames: int | None = metadata.pop("frames", None)
        self._info = {key: self.image.info[key] for key in _ORIENTATION_KEYS if key in self.image.info} | metadata

    @property
    def orientation(self) -> int:
        """1 (upright) to 8. Metadata that cannot be read says nothing."""
        if self.image.format == "TIFF":  # Pillow turns these itself
            return 1
        # An XMP block still counts where the EXIF block is damaged.
        for keys in (_ORIENTATION_KEYS, ("xmp",)):
            carrier = Image.new("L", (1, 1))
            carrier.info = {key: self._info[key] for key in keys if key in self._info}
            try:
                found = carrier.getexif().get(ExifTags.Base.Orientation, 1)
            except Exception:  # damaged EXIF makes Pillow raise nearly everything
                continue
            return found if found in _TURNS else 1
        return 1

    @property
    def has_frames(self) -> bool:
        """Whether the file holds an animation or several pages. The second picture of an MPO is a preview."""
        if self._frames is not None:
            return self._frames > 1
        try:
            return self.image.format != "MPO" and bool(getattr(self.image, "is_animated", False))
        except Exception:  # the first frame is all that is read
            return False

    def load(self) -> Image.Image:
        """Decode the first frame to its last byte, as it lies in the file."""
        if self.image.format == "TIFF":
            # Pillow checks its own limit where it allocates, and has nothing to allocate then.
            tile = getattr(self.image, "_tile_size", self.image.size)
            if tile[0] * tile[1] > (Image.MAX_IMAGE_PIXELS or tile[0] * tile[1]):
                self.image.im = Image.new(self.image.mode, tile).im
        self.image.load()
        return self.image

    def upright(self, image: Image.Image) -> Image.Image:
        """`image`, which has the pixels of this file, turned as `orientation` says."""
        turn = _TURNS.get(self.orientation)
        return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> Image.Transpose | None:
    """The turn that an opened Pillow image needs; None where it is upright or its metadata are damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return None


def _open(file: io.BytesIO) -> ImageFile.ImageFile:
    """`Image.open` without its global limit of pixels."""
    prefix = file.read(16)
    for kind in FORMATS:
        factory, accept = Image.OPEN[kind]
        if accept is not None and accept(prefix) is not True:  # text says why Pillow cannot read it here
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # what `Image.open` takes for another format
            continue
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"Pillow opens no {kind} file of so many pixels ({error}): store it as PNG, JPEG or TIFF"
            ) from error
    raise UnidentifiedImageError("the content is no known image format, or its header is damaged")


def _png_parts(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """A PNG without its ancillary chunks (but transparency), and what they say about orientation and frames.

    A file that ends inside a chunk of pixels is left as it is, for Pillow to refuse.
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
    """What a chunk says about orientation and frames, under the names that Pillow gives it."""
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
