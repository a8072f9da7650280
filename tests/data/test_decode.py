"""Every kind of picture that users have becomes upright 8-bit RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from prologue.data.decode import decode, header_size
from prologue.errors import DataError

WHITE, BLUE = (255, 255, 255), (0, 0, 255)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(data: bytes, background: tuple[int, int, int] = WHITE, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode(data, "x", background)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    seen = colour(file(Image.new("RGB", (8, 8), (200, 100, 50)), kind, **options))
    np.testing.assert_allclose(seen, (200, 100, 50), atol=3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_on_the_background(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    clear = file(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), kind, **options)
    assert colour(clear) == WHITE
    assert colour(clear, BLUE) == BLUE
    half = colour(file(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), kind, **options), BLUE)
    np.testing.assert_allclose(half, (128, 0, 127), atol=2)


def test_grey_with_and_without_alpha() -> None:
    assert colour(file(Image.new("L", (4, 4), 90))) == (90, 90, 90)
    assert colour(file(Image.new("LA", (4, 4), (90, 0))), BLUE) == BLUE
    assert colour(file(Image.new("LA", (4, 4), (90, 255))), BLUE) == (90, 90, 90)
    assert colour(file(Image.new("1", (4, 4), 1))) == WHITE


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert colour(file(image)) == (10, 200, 30)
    assert colour(file(image, transparency=1), BLUE) == BLUE
    assert colour(file(image, transparency=0), BLUE) == (10, 200, 30)


def test_a_transparent_colour() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert colour(file(image, transparency=(1, 2, 3)), BLUE) == BLUE
    assert colour(file(image, transparency=(1, 2, 4)), BLUE) == (1, 2, 3)
    assert colour(file(Image.new("L", (4, 4), 7), transparency=7), BLUE) == BLUE


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (65535, 255), (32896, 128), (257 * 40, 40), (100, 0)])
def test_16_bit_grey_is_scaled_not_clipped(level: int, expected: int) -> None:
    data = file(Image.fromarray(np.full((4, 4), level, dtype=np.uint16)))
    assert colour(data) == (expected,) * 3


def test_16_bit_grey_with_a_transparent_level() -> None:
    levels = np.full((4, 4), 30000, dtype=np.uint16)
    levels[0, 0] = 999
    data = file(Image.fromarray(levels), transparency=999)
    assert colour(data, BLUE) == BLUE
    assert colour(data, BLUE, at=(2, 2)) == (117, 117, 117)


def test_cmyk() -> None:
    seen = colour(file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    np.testing.assert_allclose(seen, (255, 0, 0), atol=6)


def test_exif_turns_the_picture_upright() -> None:
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        assert decode(file(image, kind, exif=exif), "x", WHITE).size == (4, 8)
    assert header_size(file(image, "JPEG", exif=exif), "x") == (8, 4)
    assert header_size(file(image), "x") == (4, 8)


def test_a_wrong_ending_does_not_matter_but_a_wrong_content_does() -> None:
    assert colour(file(Image.new("RGB", (4, 4), (9, 9, 9)), "BMP")) == (9, 9, 9)
    for data in (b"", b"hello", file(Image.new("RGB", (64, 64)))[:-30], b"%!PS-Adobe-3.0 EPSF-3.0"):
        with pytest.raises(DataError, match=r"photo\.png cannot be read as an image"):
            decode(data, "photo.png", WHITE)
    with pytest.raises(DataError, match=r"photo\.png"):
        header_size(b"hello", "photo.png")
