"""Opening a folder or zip: damaged and large files, images held out, the fingerprint, and views."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.pictures import SIZE, fill, names, opened, place, save

from prologue.data import crops
from prologue.data.folder import images as images_module
from prologue.errors import DataError
from prologue.utils.rng import numpy_stream

FORMS = pytest.mark.parametrize("form", ["folder", "zip"])


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", "cat10", "cat2", "Bird", count=12)


@FORMS
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_file_is_named_or_skipped(classes: Path, form: str, damage: str) -> None:
    victim = classes / "cat2" / "7.png"
    whole = victim.read_bytes()
    victim.write_bytes({"truncated": whole[:-200], "text": b"<html>not found</html>", "empty": b""}[damage])
    where = place(classes, form)
    with pytest.raises(DataError, match=r"cat2/7\.png.*--data\.skip-damaged true") as caught:
        opened(where)
    assert "BytesIO" not in str(caught.value)
    data = opened(where, skip_damaged=True)
    assert len(data.files) == 35
    assert any(note.startswith("Skipped 1 damaged files:") and "cat2/7.png" in note for note in data.notes)


@FORMS
def test_many_files_are_checked_by_header_only(classes: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "FULL_CHECK", 10)
    monkeypatch.setattr(images_module, "_HEAD", 64)
    Image.new("RGB", (9, 30)).save(classes / "Bird" / "small.webp")  # its header is read from the whole file
    victim = classes / "cat2" / "7.png"
    victim.write_bytes(victim.read_bytes()[:-200])
    data = opened(place(classes, form), validation_fraction=0)
    assert data.notes[0].startswith("1 of 37 images are smaller")
    with pytest.raises(DataError, match=r"cat2/7\.png"):
        data.train.center_view(names(data)[0].index("cat2/7.png"))
    victim.write_bytes(b"")
    with pytest.raises(DataError, match=r"cat2/7\.png"):
        opened(place(classes, form))


def test_large_pictures_name_the_field_that_allows_them(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    with pytest.raises(DataError, match=r"0\.png is too large: .* 480 pixels.*--data\.max-pixels 480"):
        opened(tmp_path, max_pixels=479)
    assert len(opened(tmp_path, max_pixels=480).files) == 4


def test_small_images_are_enlarged_and_counted(classes: Path) -> None:
    save(classes / "Bird" / "tiny.png", 5, 40)
    save(classes / "Bird" / "thin.png", 40, 15)
    data = opened(classes)
    assert data.notes == ("2 of 38 images are smaller than 16 × 16 (rows × columns) and are enlarged.",)
    for part in (data.train, data.validation):
        assert {part.center_view(i).shape for i in range(len(part))} == {(3, *SIZE)}
    assert data.train.center_view(0).dtype == np.uint8


def test_the_first_frame_is_used_and_others_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    first, second = Image.new("RGB", (20, 20), (250, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 250))
    first.save(tmp_path / "a" / "moving.gif", save_all=True, append_images=[second])
    data = opened(tmp_path, validation_fraction=0)
    assert data.notes == (
        "1 of 5 files hold several frames or pages; only the first is used (for example a/moving.gif).",
    )
    view = data.train.center_view(names(data)[0].index("a/moving.gif"))
    assert view[:, 8, 8].tolist() == [250, 0, 0]


def test_added_files_move_no_other(classes: Path) -> None:
    train, validation = names(opened(classes))
    fill(classes, "cat2", count=40)
    later_train, later_validation = names(opened(classes))
    assert set(train) <= set(later_train)
    assert set(validation) <= set(later_validation)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_every_class_of_two_is_in_both_splits(classes: Path, fraction: float) -> None:
    data = opened(fill(classes, "pair", count=2), validation_fraction=fraction)
    assert set(data.train.labels.tolist()) == set(data.validation.labels.tolist()) == {0, 1, 2, 3}


def test_a_class_of_one_image_trains(classes: Path) -> None:
    data = opened(fill(classes, "single", count=1))
    label = data.class_names.index("single")
    assert label in data.train.labels
    assert label not in data.validation.labels
    assert data.notes == ("Classes with only one image are used for training and not for validation: single.",)
    none_held = opened(classes, validation_fraction=0)
    assert len(none_held.validation) == 0
    assert none_held.notes == ()


def test_the_fingerprint_follows_what_is_seen(classes: Path) -> None:
    def now(**changes: object) -> str:
        return opened(classes, **changes).fingerprint  # type: ignore[arg-type]

    first = now()
    assert now() == first
    assert now(cache_mb=0) == first
    changed = {now(background=(0, 0, 0)), now(flip=False), now(crop="center"), now(validation_fraction=0.1)}
    os.rename(classes / "cat2" / "3.png", classes / "cat10" / "moved.png")
    changed.add(now())
    save(classes / "cat2" / "3.png", 30, 30)
    changed.add(now())
    assert len(changed | {first}) == 7


def test_views_follow_the_options_and_the_cache_changes_nothing(classes: Path) -> None:
    cached, fresh = (
        opened(classes, (6, 9), crop="random", token_views="ten-crop", flip=True, cache_mb=megabytes).train
        for megabytes in (1, 0)
    )
    assert cached.views == fresh.views == 10
    for index in range(4):
        np.testing.assert_array_equal(cached.token_views(index), fresh.token_views(index))
        views = [images.train_view(index, numpy_stream(index)) for images in (cached, fresh)]
        np.testing.assert_array_equal(*views)
    center = opened(classes, crop="center", token_views="center", flip=False).train
    np.testing.assert_array_equal(center.train_view(0, numpy_stream(0)), center.center_view(0))
    np.testing.assert_array_equal(center.token_views(0), center.center_view(0)[None])


def test_views_are_the_crops_of_the_whole_picture(classes: Path) -> None:
    """At a size where the kept picture would be too small if it were halved for the center crop alone."""
    train = opened(classes, (9, 11), flip=False).train
    for index, name in enumerate(names(opened(classes))[0]):
        with Image.open(classes / name) as whole:
            np.testing.assert_array_equal(train.center_view(index), crops.pixels(crops.center_crop(whole, (9, 11))))
            expected = crops.pixels(crops.random_crop(whole, (9, 11), numpy_stream(index)))
        np.testing.assert_array_equal(train.train_view(index, numpy_stream(index)), expected)
