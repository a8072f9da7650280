"""The embedded plates: figures that hue alone shows."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from prologue.config import DataConfig
from prologue.data.embedded import plates
from prologue.data.embedded.plates import HUES, Plates, PlatesSet
from prologue.data.source import open_data
from prologue.errors import DataError, MissingExtraError

KINDS = Plates(figures="kinds")
CONFIG = DataConfig(shapes_images=40, shapes_validation=20, crop="center", token_views="center")


def kinds(count: int = 40, side: int = 40, **options: object) -> PlatesSet:
    return PlatesSet("train", count, (side, side), CONFIG, dataclasses.replace(KINDS, **options))  # type: ignore[arg-type]


def test_plates_are_the_same_each_time_and_differ_from_each_other() -> None:
    one, other = kinds(), kinds()
    for index in (0, 7, 39):
        np.testing.assert_array_equal(one.center_view(index), other.render(index, 40, 40))
    assert len({one.center_view(index).tobytes() for index in range(40)}) == 40
    held_out = PlatesSet("validation", 40, (40, 40), CONFIG, KINDS)
    assert not np.array_equal(one.center_view(0), held_out.center_view(0))


@pytest.mark.parametrize("side", [24, 32, 40, 48, 64])
def test_cells_have_one_colour_at_every_size(side: int) -> None:
    picture = kinds(side=side).center_view(3)
    assert picture.shape == (3, side, side)
    blocks = picture.reshape(3, side // 4, 4, side // 4, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert kinds(side=side, cell=2).grid == (side // 2, side // 2)
    # Larger, and on a rectangle, the same cells.
    larger = kinds(side=side).render(3, 2 * side, 2 * side)
    np.testing.assert_array_equal(larger[:, ::2, ::2], picture)


def test_figure_and_ground_have_a_hue_each_and_the_same_lightness() -> None:
    """Without noise a plate has two hues, and lightness says nothing of where the figure is."""
    images, inside, outside = kinds(noise=0.0), [], []
    for index in range(40):
        plate = images.plate(index)
        assert plate.figure_hue != plate.ground_hue
        figure = images._figure(plate)
        assert 0.05 < figure.mean() < 0.8
        cells = images.center_view(index)[:, ::4, ::4].astype(float)
        # Orange-red, green, teal and violet are told apart by which channels lead.
        spread = cells - cells.mean(0)
        angle = np.degrees(np.arctan2(np.sqrt(3) * (spread[1] - spread[2]), 2 * spread[0] - spread[1] - spread[2]))
        ours, ground = (np.exp(1j * np.radians(angle[mask])) for mask in (figure, ~figure))
        assert abs(ours.mean()) > 0.9
        assert abs(ground.mean()) > 0.9
        assert abs(np.degrees(np.angle(ours.mean() / ground.mean()))) > 35
        grey = cells.mean(0)
        inside.append(grey[figure].mean())
        outside.append(grey[~figure].mean())
    assert abs(np.mean(inside) - np.mean(outside)) < 0.1 * np.std(np.array(inside) - np.array(outside)) * np.sqrt(40)


def test_noise_is_the_part_of_cells_of_a_random_hue() -> None:
    clean, noisy = kinds(noise=0.0), kinds(noise=0.5)
    changed = [
        (clean.center_view(i)[:, ::4, ::4] != noisy.center_view(i)[:, ::4, ::4]).any(0).mean() for i in range(40)
    ]
    assert np.mean(changed) == pytest.approx(0.5 * (1 - 1 / len(HUES)), abs=0.04)
    assert noisy.plate(5).noise == 0.5
    assert dataclasses.replace(noisy.plate(5), noise=0.0) == clean.plate(5)


def test_classes_are_balanced_and_factors_known() -> None:
    data = open_data("plates:figures=kinds", CONFIG, (40, 40))
    assert np.bincount(data.train.labels).tolist() == [5] * 8
    assert isinstance(data.train, PlatesSet)
    factors = [data.train.factors(index) for index in range(40)]
    assert [each["figure"] for each in factors[:8]] == list(data.class_names)
    assert {each["figure_hue"] for each in factors} == {each["ground_hue"] for each in factors} == set(HUES)
    assert all(-1 <= each["x"] <= 1 and -1 <= each["y"] <= 1 and 0.8 <= each["size"] <= 1 for each in factors)
    assert len({each["x"] for each in factors}) > 2


def test_digits_of_the_splits_are_different_scans() -> None:
    pytest.importorskip("sklearn")
    data = open_data("plates", CONFIG, (40, 40))
    assert data.class_names == tuple("0123456789")
    assert np.bincount(data.train.labels).tolist() == [4] * 10
    splits = [{scan.tobytes() for digit in plates._scans(split) for scan in digit} for split in ("train", "validation")]
    assert len(splits[0]) > 3.5 * len(splits[1]) > 0
    assert not splits[0] & splits[1]


def test_plates_are_never_mirrored() -> None:
    images = PlatesSet("train", 8, (40, 40), dataclasses.replace(CONFIG, flip=True), KINDS)
    rng = np.random.default_rng(0)
    assert {images.train_view(2, rng).tobytes() for _ in range(8)} == {images.center_view(2).tobytes()}
    assert images.views == 1


def test_the_fingerprint_tells_the_options() -> None:
    wheres = ("plates:figures=kinds", "plates:figures=kinds,noise=0.2", "plates:figures=kinds,cell=2")
    found = [open_data(where, CONFIG, (40, 40)).fingerprint for where in wheres]
    assert len(set(found)) == 3
    assert open_data("plates:noise=0.1,figures=kinds", CONFIG, (40, 40)).fingerprint == found[0]


def test_too_few_cells_and_a_missing_extra_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"16 × 16 px have 4 × 4 cells of 4 px.*plates:cell=N"):
        open_data("plates:figures=kinds", CONFIG, (16, 16))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    plates._scans.cache_clear()
    with pytest.raises(MissingExtraError, match=r"\[digits\]"):
        open_data("plates", CONFIG, (40, 40))
