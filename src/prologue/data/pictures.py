"""Writes and reads PNG files, labelled grids, and the NPZ archive of samples."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from prologue.config import MAX_PIXELS
from prologue.data.crops import center_crop, pixels
from prologue.data.decode import OpenPicture, upright_rgb
from prologue.errors import DataError
from prologue.utils.files import atomic_write

_WHITE = (255, 255, 255)
_INK = (30, 30, 30)
_SHOWN_SIDE = 128
"""Smallest side of a tile in a grid, in pixels; smaller tiles are enlarged by a whole factor."""

_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def open_image(path: Path, background: tuple[int, int, int] = _WHITE) -> Image.Image:
    """An image file as upright RGB on a background colour. Raises `DataError` naming a missing or damaged file."""
    if not path.is_file():
        raise DataError(f"{path} is not a file: give the path of an image")
    try:
        return _decoded(path, background)
    except Exception as error:  # damaged files make the decoders raise nearly everything
        reason = str(error).split("<_io")[0].strip() or type(error).__name__
        raise DataError(f"{path} cannot be read as an image ({reason}): give an undamaged PNG, JPEG or WebP") from error


def _decoded(path: Path, background: tuple[int, int, int]) -> Image.Image:
    try:
        picture = OpenPicture(path.read_bytes(), MAX_PIXELS)
    except UnidentifiedImageError:  # Pillow reads more formats than `OpenPicture`
        with Image.open(path) as image:
            return upright_rgb(image, background)
    with picture.image:
        return picture.load(background)


def fit(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int] = _WHITE) -> UInt8[Tensor, "3 H W"]:
    """The center crop (METHOD §2) of any picture to `size` (rows, columns), for a tokenizer of such images."""
    return torch.from_numpy(pixels(center_crop(upright_rgb(image, background), size)))


def to_pil(images: UInt8[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """RGB pictures of uint8 tensors on any device."""
    return [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def save_png(path: Path, image: Image.Image, durable: bool = True) -> None:
    """Write a PNG file atomically; for `durable` see `prologue.utils.files.replacing`."""
    with atomic_write(path, durable) as file:
        image.save(file, format="PNG")


def is_whole_png(path: Path) -> bool:
    """Whether a PNG file exists with its first and last bytes; those between are not read."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_PNG_BEGIN))
            file.seek(-len(_PNG_END), os.SEEK_END)
            return begin == _PNG_BEGIN and file.read() == _PNG_END
    except OSError:
        return False


def file_name(index: int, name: str | None, seed: int) -> str:
    """`00000_ring_seed0.png`. Characters that this file system cannot hold become a dash."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:60] if name is not None else ""
    try:
        os.fsencode(plain)
    except UnicodeEncodeError:  # the file system holds ASCII only
        plain = re.sub(r"[^\w.-]+", "-", plain, flags=re.ASCII).strip(".-")
    return f"{index:05d}_{plain}_seed{seed}.png" if plain else f"{index:05d}_seed{seed}.png"


WRITTEN_NAME = re.compile(r"\d{5,}(_.+)?_seed-?\d+\.png|grid\.png|samples(-\d{5,})?\.npz|generation\.json")
"""Names of the files that `generate` and `resample` write."""


def labelled_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
) -> Image.Image:
    """Tiles of one size in rows, with labels above columns and left of rows. None leaves a cell empty.

    Small tiles are enlarged by a whole factor, and labels that are too long are shortened.
    """
    first = next(tile for row in rows for tile in row if tile is not None)
    factor = max(1, math.ceil(_SHOWN_SIDE / max(first.size)))
    width, height = first.width * factor, first.height * factor
    gap = max(4, width // 32)
    font = _font(max(13, min(24, width // 8)))
    text_height = math.ceil(font.getbbox("Ág")[3])
    top = gap + (text_height + gap if column_labels else 0)
    widths = [math.ceil(font.getlength(_shorten(label, font, 2 * width))) + gap for label in row_labels]
    left = gap + max(widths, default=0)
    columns = max(len(row) for row in rows)
    size = (left + columns * (width + gap), top + len(rows) * (height + gap))
    grid = Image.new("RGB", size, _WHITE)
    ink = ImageDraw.Draw(grid)
    for column, label in enumerate(column_labels):
        text = _shorten(label, font, width + gap - 4)
        start = left + column * (width + gap) + (width - font.getlength(text)) / 2
        ink.text((start, gap), text, fill=_INK, font=font)
    for row, label in enumerate(row_labels):
        middle = top + row * (height + gap) + (height - text_height) / 2
        ink.text((gap, middle), _shorten(label, font, 2 * width), fill=_INK, font=font)
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            if tile is not None:
                shown = tile.resize((width, height), Image.Resampling.LANCZOS) if factor > 1 else tile
                grid.paste(shown, (left + column * (width + gap), top + row * (height + gap)))
    return grid


def thumbnails(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Copies that are reduced to the smallest side of a tile, for grids of many pictures."""
    copies = [image.copy() for image in images]
    for image in copies:
        image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
    return copies


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a title above it. The title is broken into lines."""
    font = _font(20)
    lines, line = [], ""
    for word in title.split():
        if line and font.getlength(f"{line} {word}") > picture.width - 16:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    lines.append(line)
    height = 28 * len(lines) + 8
    out = Image.new("RGB", (picture.width, picture.height + height), _WHITE)
    ImageDraw.Draw(out).multiline_text((8, 6), "\n".join(lines), fill=_INK, font=font, spacing=6)
    out.paste(picture, (0, height))
    return out


def class_grid(
    images: Sequence[Image.Image], names: Sequence[str], columns: int = 10, most_rows: int = 8, most_classes: int = 60
) -> Image.Image:
    """A grid with a column for each name, in order of appearance. Bands of `columns` columns lie below each other.

    At most `most_rows` images of a name and `most_classes` names are shown. Images of a single name fill a square.
    """
    groups: dict[str, list[Image.Image]] = {}
    for image, name in zip(images, names, strict=True):
        groups.setdefault(name, []).append(image)
    if len(groups) == 1:
        shown = images[: columns * most_rows]
        across = min(columns, math.ceil(math.sqrt(len(shown))))
        rows = [shown[start : start + across] for start in range(0, len(shown), across)]
        return labelled_grid(rows, [label for label in groups if label])
    labels = list(groups)[:most_classes]
    bands = []
    for start in range(0, len(labels), columns):
        band = labels[start : start + columns]
        depth = min(most_rows, max(len(groups[label]) for label in band))
        table = [[groups[label][row] if row < len(groups[label]) else None for label in band] for row in range(depth)]
        bands.append(labelled_grid(table, band))
    return stacked(bands)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, aligned at the left."""
    out = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), _WHITE)
    top = 0
    for picture in pictures:
        out.paste(picture, (0, top))
        top += picture.height
    return out


def _font(size: int) -> Font:
    """DejaVu Sans from the files of matplotlib, because it covers many scripts, or else Pillow's own font.

    Matplotlib is not imported.
    """
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        try:
            return ImageFont.truetype(str(path), size)
        except (OSError, ImportError):  # the file, or Pillow's FreeType, is missing
            pass
    return ImageFont.load_default(size)


def _shorten(text: str, font: Font, width: float) -> str:
    """The text, cut and ended with an ellipsis if it is wider than `width`."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


class _Unfinished(Exception):
    """The `with` block of an archive ended without `finish`."""


class SampleArchive:
    """`samples.npz`, written image by image: `arr_0` (N, H, W, 3) uint8, as the evaluators of METHOD §10 read it.

    `finish` adds small arrays (class ids, seeds, tokens) and puts the file in place. If the `with` block ends without
    it, no file is left.
    """

    def __init__(self, path: Path, count: int, size: tuple[int, int]) -> None:
        self._whole = atomic_write(path)
        self._zip = zipfile.ZipFile(self._whole.__enter__(), "w", zipfile.ZIP_STORED)
        # A ZipInfo without a time, so that the same samples give the same bytes.
        self._images = self._zip.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
        np.lib.format.write_array_header_1_0(self._images, header)

    def __enter__(self) -> Self:
        return self

    def add(self, images: Sequence[Image.Image] | UInt8[np.ndarray, "n H W 3"]) -> None:
        """Append RGB images of the archive's size."""
        for image in images:
            self._images.write(np.asarray(image).tobytes())

    def finish(self, **arrays: np.ndarray) -> None:
        """Write the arrays by name and close; call once, after `count` images."""
        self._images.close()
        for name, array in arrays.items():
            with self._zip.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        self._zip.close()
        self._whole.__exit__(None, None, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._zip.fp is not None:
            left = error if error is not None else _Unfinished()
            with suppress(OSError):  # a full disk has raised its error already
                self._images.close()
                self._zip.close()
            self._whole.__exit__(type(left), left, trace)


def is_whole_archive(path: Path, count: int, size: tuple[int, int]) -> bool:
    """Whether a file is a whole archive of `count` images as `SampleArchive` writes it. The images are not read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            return _read_shape(file) == (count, *size, 3)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _read_shape(file: IO[bytes]) -> tuple[int, ...]:
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return tuple(shape)


def read_images(path: Path, count: int) -> Iterator[Image.Image]:
    """The first `count` images of an archive of `SampleArchive`, each read when it is needed."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        total, *shape = _read_shape(file)
        size = math.prod(shape)
        for _ in range(min(count, total)):
            yield Image.fromarray(np.frombuffer(file.read(size), np.uint8).reshape(shape))
