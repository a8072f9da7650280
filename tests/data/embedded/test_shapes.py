"""The embedded scenes: deterministic, split without overlap, the same at every size, with dependent factors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from prologue.config import DataConfig
from prologue.data.embedded.colour import grainy
from prologue.data.embedded.drawing import draw
from prologue.data.embedded.shapes import BACKGROUNDS, CLASS_NAMES, COLOURS, TEXTURES, Shapes, ShapesSet, scene
from prologue.data.source import open_data


def correlation(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_scenes_are_a_function_of_seed_split_and_index() -> None:
    assert scene("train", 5) == scene("train", 5)
    assert scene("train", 5) != scene("train", 13)
    assert scene("train", 5) != scene("train", 5, seed=1)
    np.testing.assert_array_equal(draw(scene("train", 5), 32, 32), draw(scene("train", 5), 32, 32))


def test_splits_share_no_scene() -> None:
    """The factors drawn from a continuum never coincide, so that no picture is in both."""

    def drawn(split: str) -> set[tuple[object, ...]]:
        return {dataclasses.astuple(scene(split, index)) for index in range(2000)}  # type: ignore[arg-type]

    train, validation = drawn("train"), drawn("validation")
    assert len(train) == len(validation) == 2000
    assert not train & validation
    assert not {factors[6] for factors in train} & {factors[6] for factors in validation}


def test_classes_are_balanced_and_every_factor_occurs() -> None:
    scenes = [scene("train", index) for index in range(800)]
    assert [sum(s.kind == name for s in scenes) for name in CLASS_NAMES] == [100] * 8
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.texture for s in scenes} == set(TEXTURES)
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert all(0.5 <= s.size <= 0.8 and abs(s.rotation) <= 25 and -1 <= s.x <= 1 for s in scenes)


def test_factors_depend_on_each_other() -> None:
    scenes = [scene("train", index) for index in range(800)]
    assert correlation([s.light for s in scenes], [s.x for s in scenes]) < -0.8
    assert correlation([s.x for s in scenes], [s.rotation for s in scenes]) > 0.8
    apart = [abs((s.background_hue - s.hue) % 360 - 180) for s in scenes]
    assert max(apart) <= 15
    warm = [s.colour in ("red", "amber", "magenta") for s in scenes]
    assert correlation(warm, [s.night for s in scenes]) > 0.6


@pytest.mark.parametrize("index", range(16))
def test_a_scene_is_the_same_picture_at_every_size(index: int) -> None:
    large = Image.fromarray(draw(scene("train", index), 256, 256).transpose(1, 2, 0))
    small = draw(scene("train", index), 64, 64).transpose(1, 2, 0)
    reduced = np.asarray(large.resize((64, 64), Image.Resampling.BOX), dtype=float)
    error = np.abs(reduced - small)
    assert error.mean() < 0.6
    assert np.quantile(error, 0.99) < 8


@pytest.mark.parametrize("size", [(16, 40), (40, 16), (31, 33)])
def test_any_size(size: tuple[int, int]) -> None:
    pictures = [draw(scene("train", index), *size) for index in range(8)]
    assert {picture.shape for picture in pictures} == {(3, *size)}
    assert all(picture.std() > 20 for picture in pictures)


def test_the_shape_stands_out_from_its_ground() -> None:
    """Its middle (of those with one) differs from the corners farthest away."""
    for index in range(400):
        s = scene("train", index)
        if s.kind in ("ring", "crescent"):
            continue
        picture = draw(s, 64, 64).astype(float)
        room = 1 - 0.9 * s.size
        row, column = (round(31.5 + 32 * room * place) for place in (s.y, s.x))
        corner = picture[:, -1 if row < 32 else 0, -1 if column < 32 else 0]
        assert np.abs(picture[:, row, column] - corner).max() > 50, index


def test_classes_differ_in_silhouette() -> None:
    """All else equal, each pair of kinds differs over a visible part of a small picture."""
    base = dataclasses.replace(scene("train", 0), texture="plain")
    pictures = [draw(dataclasses.replace(base, kind=name), 32, 32).astype(float) for name in CLASS_NAMES]
    for one in range(8):
        for other in range(one):
            differing = (np.abs(pictures[one] - pictures[other]).max(axis=0) > 30).mean()
            assert differing > 0.04, (CLASS_NAMES[one], CLASS_NAMES[other], differing)


def test_views_follow_the_options() -> None:
    rng = np.random.default_rng(0)
    plain = ShapesSet("train", 9, (16, 16), DataConfig(crop="center", flip=False, token_views="center"))
    center = plain.center_view(3)
    assert plain.views == 1
    np.testing.assert_array_equal(plain.train_view(3, rng), center)
    np.testing.assert_array_equal(plain.token_views(3), center[None])

    flipped = ShapesSet("train", 9, (16, 16), DataConfig(crop="center", flip=True, token_views="center"))
    assert flipped.views == 2
    np.testing.assert_array_equal(flipped.token_views(3)[1], center[:, :, ::-1])
    assert {flipped.train_view(3, rng).tobytes() for _ in range(20)} == {
        center.tobytes(),
        center[:, :, ::-1].tobytes(),
    }

    ten = ShapesSet("train", 9, (20, 30), DataConfig(flip=True, token_views="ten-crop"))
    assert ten.views == 10
    assert ShapesSet("train", 9, (20, 30), DataConfig(flip=False, token_views="ten-crop")).views == 5
    np.testing.assert_array_equal(ten.token_views(2)[0], ten.render(2, 22, 33)[:, :20, :30])


def test_cached_views_equal_fresh_ones_and_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = ShapesSet.render

    def counted(self: ShapesSet, index: int, height: int, width: int) -> np.ndarray:
        drawn.append(index)
        return original(self, index, height, width)

    monkeypatch.setattr(ShapesSet, "render", counted)
    cached, fresh = (ShapesSet("train", 9, (16, 16), DataConfig(cache_mb=megabytes)) for megabytes in (1, 0))
    first = cached.center_view(4)
    np.testing.assert_array_equal(cached.center_view(4), first)
    assert len(drawn) == 1
    for _ in range(2):
        np.testing.assert_array_equal(fresh.center_view(4), first)
    assert len(drawn) == 3


def test_open_data_gives_both_splits_and_a_fingerprint_of_what_is_seen() -> None:
    config = DataConfig(shapes_images=50, shapes_validation=20)
    data = open_data("shapes", config, (32, 32))
    assert (len(data.train), len(data.validation), data.num_classes) == (50, 20, 8)
    assert data.class_names == CLASS_NAMES
    assert data.fingerprint == open_data("shapes", config, (32, 32)).fingerprint
    changes = [{"flip": False}, {"crop": "center"}, {"token_views": "center"}, {"shapes_images": 51}]
    others = [open_data("shapes", dataclasses.replace(config, **change), (32, 32)).fingerprint for change in changes]
    others.append(open_data("shapes", config, (32, 64)).fingerprint)
    assert len({data.fingerprint, *others}) == 6
    assert open_data("shapes", dataclasses.replace(config, cache_mb=1), (32, 32)).fingerprint == data.fingerprint


def test_factors_are_returned_beside_the_image() -> None:
    images = ShapesSet("validation", 10, (32, 32), DataConfig())
    factors = images.factors(4)
    assert factors["kind"] == CLASS_NAMES[images.labels[4]] == "ring"
    assert {"colour", "x", "y", "size", "rotation", "texture", "background", "light"} <= factors.keys()


def test_without_grain_shapes_are_what_they_were() -> None:
    config = DataConfig(shapes_images=16, shapes_validation=8)
    plain = open_data("shapes", config, (32, 32))
    assert plain.fingerprint == "7930e9ed7f6d905ac6ac0b6d64e35f20"
    for where in ("shapes:grain=0", "shapes:grain=0,cell=2"):
        same = open_data(where, config, (32, 32))
        assert same.fingerprint == plain.fingerprint
        for index in range(16):
            np.testing.assert_array_equal(same.train.center_view(index), plain.train.center_view(index))


def test_grain_changes_whole_cells_by_its_strength() -> None:
    plain, weak, strong = (
        ShapesSet("train", 16, (48, 48), DataConfig(), options=Shapes(grain=grain)) for grain in (0, 0.3, 0.6)
    )
    changes = []
    for images in (weak, strong):
        off = [images.center_view(i).astype(float) - plain.center_view(i) for i in range(16)]
        changes.append(np.abs(off).mean())
        again = ShapesSet("train", 16, (48, 48), DataConfig(), options=images.options)
        np.testing.assert_array_equal(again.center_view(3), images.center_view(3))
    assert 15 < changes[0] < 0.75 * changes[1]
    # A grey cell stays of one colour: brightness changes by cells of 4 px.
    ground = grainy(np.full((3, 8, 8), 128, dtype=np.uint8), np.ones((2, 2)), np.array([[0.1, -0.1], [0.2, 0.0]]))
    assert ground[0, ::4, ::4].tolist() == [[154, 103], [179, 128]]
    assert (ground == ground[:, ::4, ::4].repeat(4, 1).repeat(4, 2)).all()
    # A turn by a third of the circle takes red to green.
    red = np.zeros((3, 4, 4), dtype=np.uint8)
    red[0] = 200
    turned = grainy(red, np.full((1, 1), 2 * np.pi / 3), np.zeros((1, 1)))
    assert turned[:, 0, 0].tolist() == [0, 200, 0]
    assert weak.factors(3)["grain"] == 0.3
    assert weak.labels.tolist() == plain.labels.tolist()
    fingerprints = {
        open_data(f"shapes:{option}", DataConfig(), (48, 48)).fingerprint
        for option in ("grain=0.3", "grain=0.6", "grain=0.3,cell=2", "cell=2")
    }
    assert len(fingerprints) == 4
