"""METHOD §2's crops, and their generalisation to rectangles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prologue.data import crops
from prologue.utils.rng import numpy_stream

SIDES = st.integers(1, 150)
TARGETS = st.tuples(st.integers(4, 40), st.integers(4, 40))


def picture(rows: int, columns: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(numpy_stream(seed, "picture").integers(0, 256, (rows, columns, 3), dtype=np.uint8))


def ramp(rows: int, columns: int) -> Image.Image:
    """Red rises downwards, green to the right: shows where a crop came from."""
    y, x = np.mgrid[0:rows, 0:columns]
    return Image.fromarray(np.stack([y * 255 // rows, x * 255 // columns, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(("rows", "columns"), [(300, 517), (256, 64), (33, 47), (16, 16), (7, 50), (512, 512)])
def test_center_crop_of_a_square_is_the_adm_crop(rows: int, columns: int) -> None:
    size = 32
    image = picture(rows, columns)
    expected = image
    while min(expected.size) >= 2 * size:  # METHOD §2, literally
        expected = expected.resize((expected.width // 2, expected.height // 2), Image.Resampling.BOX)
    scale = size / min(expected.size)
    expected = expected.resize(
        (round(expected.width * scale), round(expected.height * scale)), Image.Resampling.BICUBIC
    )
    top, left = (expected.height - size) // 2, (expected.width - size) // 2
    window = np.asarray(expected)[top : top + size, left : left + size]
    np.testing.assert_array_equal(np.asarray(crops.center_crop(image, (size, size))), window)


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, TARGETS, st.integers(0, 99))
def test_crops_have_the_target_size_for_every_picture(
    rows: int, columns: int, size: tuple[int, int], seed: int
) -> None:
    image = picture(rows, columns)
    assert crops.center_crop(image, size).size == size[::-1]
    assert crops.random_crop(image, size, numpy_stream(seed)).size == size[::-1]
    larger = crops.pixels(crops.center_crop(image, crops.ten_crop_size(size)))
    assert crops.five_windows(larger, size).shape == (5, 3, *size)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, TARGETS, st.integers(0, 99))
def test_halving_beforehand_changes_no_crop(rows: int, columns: int, size: tuple[int, int], seed: int) -> None:
    image = picture(rows, columns)
    kept = crops.halve(image, crops.largest_random(size))
    pairs = [
        (crops.center_crop(image, size), crops.center_crop(kept, size)),
        (crops.center_crop(image, crops.ten_crop_size(size)), crops.center_crop(kept, crops.ten_crop_size(size))),
        (crops.random_crop(image, size, numpy_stream(seed)), crops.random_crop(kept, size, numpy_stream(seed))),
    ]
    for whole, halved in pairs:
        np.testing.assert_array_equal(np.asarray(whole), np.asarray(halved))


def test_random_crop_lengths_are_uniform_between_size_and_its_ceiling() -> None:
    size = (30, 45)
    short = [min(crops.random_size(size, numpy_stream(seed))) for seed in range(400)]
    assert set(short) == set(range(30, math.ceil(30 / 0.8) + 1))


def test_random_crop_reaches_every_border_and_differs_by_seed() -> None:
    image = ramp(64, 96)
    views = [crops.pixels(crops.random_crop(image, (16, 16), numpy_stream(seed))) for seed in range(200)]
    left = [int(view[1, :, 0].mean()) for view in views]
    right = [int(view[1, :, -1].mean()) for view in views]
    assert min(left) < 8
    assert max(right) > 247
    assert len({view.tobytes() for view in views}) > 50


def test_ten_crop_is_corners_and_center_then_mirror_images() -> None:
    larger = crops.pixels(ramp(44, 55))
    views = crops.with_flips(crops.five_windows(larger, (40, 50)))
    assert views.shape == (10, 3, 40, 50)
    np.testing.assert_array_equal(views[0], larger[:, :40, :50])
    np.testing.assert_array_equal(views[1], larger[:, :40, -50:])
    np.testing.assert_array_equal(views[2], larger[:, -40:, :50])
    np.testing.assert_array_equal(views[3], larger[:, -40:, -50:])
    np.testing.assert_array_equal(views[4], larger[:, 2:42, 2:52])
    np.testing.assert_array_equal(views[5:], views[:5, :, :, ::-1])


def test_ten_crop_sizes() -> None:
    assert crops.ten_crop_size((256, 32)) == (281, 35)


def test_a_sliver_is_cropped_without_an_absurd_resize() -> None:
    sliver = ramp(2, 4000)  # covering 256 rows would take 256 × 512,000 pixels
    view = np.asarray(crops.center_crop(sliver, (256, 256)))
    assert view.shape == (256, 256, 3)
    assert abs(int(view[:, :, 1].mean()) - 127) <= 2
    exact = crops._resize_and_cut(ramp(8, 40), (32, 160), 2, 50, (30, 30))
    boxed = ramp(8, 40).resize((30, 30), Image.Resampling.BICUBIC, box=(12.5, 0.5, 20.0, 8.0))
    np.testing.assert_allclose(np.asarray(exact, float), np.asarray(boxed, float), atol=1)
