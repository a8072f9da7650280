"""Every kind of picture that users have becomes upright 8-bit RGB."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from prologue.data.decode import decode, read_header, upright_rgb
from prologue.data.pictures import open_image
from prologue.errors import DataError

WHITE, BLUE = (255, 255, 255), (0, 0, 255)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(data: bytes, background: tuple[int, int, int] = WHITE, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode(data, "x", background).image
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


def grey16(level: int) -> Image.Image:
    levels = np.full((4, 4), 30000, dtype=np.uint16)
    levels[0, 0] = level
    return Image.fromarray(levels)


RGB, RED = Image.new("RGB", (4, 4), (1, 2, 3)), (255, 0, 0)
LOSSLESS = {"lossless": True, "exact": True}


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected", "tolerance"),
    [
        (RGB, "PNG", {}, (1, 2, 3), 0),
        (RGB, "BMP", {}, (1, 2, 3), 0),
        (RGB, "WEBP", LOSSLESS, (1, 2, 3), 0),
        (Image.new("RGB", (8, 8), (200, 100, 50)), "JPEG", {}, (200, 100, 50), 3),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", {"quality": 95}, RED, 6),
        (Image.new("RGBA", (4, 4), (*RED, 0)), "PNG", {}, BLUE, 0),
        (Image.new("RGBA", (4, 4), (*RED, 0)), "WEBP", LOSSLESS, BLUE, 0),
        (Image.new("RGBA", (4, 4), (*RED, 128)), "PNG", {}, (128, 0, 127), 2),
        (Image.new("RGBA", (4, 4), (*RED, 128)), "WEBP", LOSSLESS, (128, 0, 127), 2),
        (Image.new("L", (4, 4), 90), "PNG", {}, (90, 90, 90), 0),
        (Image.new("LA", (4, 4), (90, 0)), "PNG", {}, BLUE, 0),
        (Image.new("LA", (4, 4), (90, 255)), "PNG", {}, (90, 90, 90), 0),
        (Image.new("1", (4, 4), 1), "PNG", {}, WHITE, 0),
        (palette(), "PNG", {}, (10, 200, 30), 0),
        (palette(), "PNG", {"transparency": 1}, BLUE, 0),
        (palette(), "PNG", {"transparency": 0}, (10, 200, 30), 0),
        (RGB, "PNG", {"transparency": (1, 2, 3)}, BLUE, 0),
        (RGB, "PNG", {"transparency": (1, 2, 4)}, (1, 2, 3), 0),
        (Image.new("L", (4, 4), 7), "PNG", {"transparency": 7}, BLUE, 0),
        (grey16(999), "PNG", {"transparency": 999}, BLUE, 0),
        (grey16(30000), "PNG", {"transparency": 999}, (117, 117, 117), 0),
        # 16 bits are scaled, not clipped.
        *[(grey16(level), "PNG", {}, (value,) * 3, 0) for level, value in {0: 0, 65535: 255, 32896: 128}.items()],
        *[(grey16(level), "PNG", {}, (value,) * 3, 0) for level, value in {257 * 40: 40, 100: 0}.items()],
    ],
)
def test_every_mode_becomes_rgb_on_the_background(
    image: Image.Image, kind: str, options: dict[str, object], expected: tuple[int, ...], tolerance: int
) -> None:
    np.testing.assert_allclose(colour(file(image, kind, **options), BLUE), expected, atol=tolerance)


def test_the_background_is_the_given_one() -> None:
    assert colour(file(Image.new("RGBA", (4, 4), (*RED, 0)))) == WHITE


def test_exif_turns_the_picture_upright() -> None:
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        assert decode(file(image, kind, exif=exif), "x", WHITE).image.size == (4, 8)
    assert read_header(file(image, "JPEG", exif=exif), "x").size == (8, 4)
    assert read_header(file(image), "x").size == (4, 8)


def test_unknown_and_truncated_content_is_refused() -> None:
    for data in (b"", b"hello", file(Image.new("RGB", (64, 64)))[:-30], b"%!PS-Adobe-3.0 EPSF-3.0"):
        with pytest.raises(DataError, match=r"photo\.png cannot be read as an image"):
            decode(data, "photo.png", WHITE)
    with pytest.raises(DataError, match=r"photo\.png"):
        read_header(b"hello", "photo.png")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(data: bytes, *chunks: bytes, after_pixels: bool = False) -> bytes:
    """A PNG with further chunks behind its header, or before its end."""
    at = len(data) - 12 if after_pixels else 33
    return data[:at] + b"".join(chunks) + data[at:]


def turned_exif(turn: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes()


LYING = file(Image.new("RGB", (8, 4), (200, 100, 50)))
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
BAD_CHUNKS = {
    "exif that is no TIFF": chunk(b"eXIf", b"no TIFF at all"),
    "empty exif": chunk(b"eXIf", b""),
    "raw exif profile without hex digits": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz\n"),
    "2 MB of compressed text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2 << 20))),
    "international text of 2 MB": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"{" * (2 << 20))),
    "70 MB of text": b"".join(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) for _ in range(70)),
    "an unknown compression": chunk(b"zTXt", b"a\0\7" + b"x"),
    "a colour profile of another compression": chunk(b"iCCP", b"icc\0\7" + b"x"),
    "a colour profile that expands to 2 MB": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2 << 20))),
    "short gamma": chunk(b"gAMA", b"x"),
    "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-4] + b"abcd",
    "broken animation control": chunk(b"acTL", b"x"),
}


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("what", BAD_CHUNKS)
def test_metadata_of_a_png_do_not_decide_about_its_pixels(what: str, after_pixels: bool) -> None:
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
    data = with_chunks(LYING, BAD_CHUNKS[what], after_pixels=after_pixels)
    image = decode(data, "x", WHITE).image
    assert image.size == (8, 4)
    assert image.getpixel((0, 0)) == (200, 100, 50)
    assert read_header(data, "x").size == (4, 8)
    turned = with_chunks(data, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))
    assert decode(turned, "x", WHITE).image.size == (4, 8)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS)


@pytest.mark.parametrize("after_pixels", [False, True])
def test_every_place_of_an_orientation_counts(after_pixels: bool) -> None:
    raw = turned_exif().hex().encode()
    for added in (
        chunk(b"eXIf", turned_exif().removeprefix(b"Exif\0\0")),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(turned_exif()) + raw)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    ):
        data = with_chunks(LYING, added, after_pixels=after_pixels)
        assert decode(data, "x", WHITE).image.size == (4, 8)
        assert read_header(data, "x").size == (8, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", b"", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_leaves_the_picture_as_it_lies(kind: str, exif: bytes) -> None:
    data = file(Image.new("RGB", (8, 4)), kind, exif=exif)
    assert decode(data, "x", WHITE).image.size == (8, 4)
    assert read_header(data, "x").size == (4, 8)
    turned = file(Image.new("RGB", (8, 4)), kind, exif=exif, xmp=XMP)
    assert decode(turned, "x", WHITE).image.size == (4, 8)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_a_tiff_is_turned_once(options: dict[str, str], tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), (0, 0, 255))
    picture.putpixel((0, 0), (255, 0, 0))
    data = file(picture, "TIFF", tiffinfo={0x0112: 6}, **options)
    assert decode(data, "x", WHITE).image.size == (4, 8)
    assert colour(data, at=(3, 0)) == (255, 0, 0)
    assert read_header(data, "x").size == (8, 4)
    (tmp_path / "a.tif").write_bytes(data)
    assert open_image(tmp_path / "a.tif").getpixel((3, 0)) == (255, 0, 0)
    with Image.open(tmp_path / "a.tif") as opened:
        assert upright_rgb(opened, WHITE).getpixel((3, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})],
)
def test_the_first_frame_is_taken_and_further_ones_are_noticed(kind: str, options: dict[str, object]) -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    several = file(first, kind, save_all=True, append_images=[second], **options)
    np.testing.assert_allclose(colour(several), (250, 0, 0), atol=3)
    assert decode(several, "x", WHITE).has_frames
    assert read_header(several, "x").has_frames
    assert not decode(file(first, kind, **options), "x", WHITE).has_frames


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
def test_large_pictures_are_refused_by_our_limit_and_no_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(Image.new("RGB", (40, 30), (9, 9, 9)), kind)
    with pytest.raises(DataError, match=r"x is too large: .*40 x 30 = 1200 pixels.* 1199\..*--data\.max-pixels 1200"):
        decode(data, "x", WHITE, 1199)
    with pytest.raises(DataError, match=r"--data\.max-pixels 1200"):
        read_header(data, "x", 1199)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses more than 200 now
    assert decode(data, "x", WHITE, 1200).image.size == (40, 30)


def test_pixels_of_an_unknown_range_are_refused() -> None:
    floats = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    with pytest.raises(DataError, match=r"floating-point numbers, whose range is unknown"):
        decode(file(floats, "TIFF"), "x", WHITE)
    wide = Image.fromarray(np.full((4, 4), 70000, dtype=np.int32))
    with pytest.raises(DataError, match=r"70000, beyond 16 bits"):
        decode(file(wide, "TIFF"), "x", WHITE)
    assert colour(file(Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)), "TIFF")) == (128,) * 3


def test_a_given_picture_is_read_as_leniently(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(with_chunks(LYING, *BAD_CHUNKS.values()))
    assert open_image(tmp_path / "a.png").size == (8, 4)
    Image.new("RGB", (8, 4), (1, 2, 3)).save(tmp_path / "a.tga")
    assert open_image(tmp_path / "a.tga").getpixel((0, 0)) == (1, 2, 3)
