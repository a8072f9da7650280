"""A user's folder or zip: layouts, splits, notes, and what is refused."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.pictures import SIZE, fill, labelled, names, opened, pack, same, save

from prologue.data import crops
from prologue.data.folder import images as images_module
from prologue.errors import DataError
from prologue.utils.rng import numpy_stream


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    fill(root, "cat10", "cat2", "Bird", count=12)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("nor this")
    (root / "cat2" / "Thumbs.db").write_bytes(b"nor this")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "0.png").write_bytes(b"nor this")
    return root


def test_one_subfolder_per_class(classes: Path) -> None:
    data = opened(classes)
    assert data.class_names == ("Bird", "cat2", "cat10")
    assert len(data.train) + len(data.validation) == 36
    assert all(label == name.split("/")[0] for name, label in labelled(data).items())
    assert set(data.validation.labels.tolist()) == {0, 1, 2}
    assert data.notes == ()
    view = data.train.center_view(0)
    assert view.shape == (3, *SIZE)
    assert view.dtype == np.uint8


@pytest.mark.parametrize("wrapper", ["", "photos/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_what_the_folder_gives(classes: Path, tmp_path: Path, wrapper: str, method: int) -> None:
    archive = pack(classes, tmp_path / "photos.zip", wrapper, method)
    same(opened(archive), opened(classes))


def test_flat_images_have_no_classes(tmp_path: Path) -> None:
    data = opened(fill(tmp_path / "flat", "", count=9))
    assert data.class_names == ()
    assert data.num_classes == 0
    assert data.train.labels.tolist() == [0] * len(data.train)
    wrapped = opened(pack(tmp_path / "flat", tmp_path / "flat.zip", "flat/"))
    same(wrapped, data)


def test_labels_from_a_table(classes: Path) -> None:
    rows = "".join(
        f"{name}/{n}.png,{'even' if n % 2 == 0 else 'odd'}\n" for name in ("Bird", "cat2") for n in range(12)
    )
    (classes / "labels.csv").write_text("file,label\n" + rows, encoding="utf-8-sig")
    data = opened(classes)
    assert data.class_names == ("even", "odd")
    train, validation = names(data)
    assert len(train) + len(validation) == 24
    assert data.train.labels.tolist() == [int(Path(name).stem) % 2 for name in train]
    assert data.notes == ("12 images that labels.csv does not name are left out.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nBird/99.png,x\n", r"line 2 names Bird/99.png, which does not exist"),
        (
            "file,label\n/data/Bird/1.png,x\n",
            r"line 2 names /data/Bird/1.png: write .* relative to the folder of the table",
        ),
        ("file,label\nC:\\data\\1.png,x\n", r"line 2 names C:.*: write .* relative to the folder of the table"),
        ("file,label\n../Bird/1.png,x\n", r"line 2 names ../Bird/1.png: write .* relative to the folder of the table"),
        ("file,label\nnotes.txt,x\n", r"notes.txt, which is not a PNG, JPEG, .* image"),
        ("file,class\nBird/1.png,x\n", r"lacks the column 'label'"),
        ("Bird/1.png,x\n", r"lacks the column 'file'"),
        ("", r"lacks the column 'file'"),
        ("file,label\n", r"names no image"),
        ("file,label\nBird/1.png,\n", r"line 2 has no label"),
        ("file,label\nBird/1.png,a\nBird/1.png,b\n", r"line 3 calls Bird/1.png 'b', an earlier line 'a'"),
    ],
)
def test_a_wrong_table_is_refused(classes: Path, text: str, message: str) -> None:
    (classes / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(classes)


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder or zip named .*nowhere.*shapes, digits or plates.*module:Name"):
        opened(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty holds no PNG, JPEG, .* image \(nothing\)"):
        opened(empty)
    (empty / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"\(1 other file\)"):
        opened(empty)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"text.zip is neither a folder nor a readable zip"):
        opened(tmp_path / "text.zip")


def test_images_beside_class_folders_are_refused(classes: Path) -> None:
    save(classes / "stray.png")
    with pytest.raises(DataError, match=r"stray.png and Bird/0.png"):
        opened(classes)


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_file_is_named_or_skipped(classes: Path, tmp_path: Path, form: str, damage: str) -> None:
    victim = classes / "cat2" / "7.png"
    whole = victim.read_bytes()
    victim.write_bytes({"truncated": whole[:-200], "text": b"<html>not found</html>", "empty": b""}[damage])
    where = str(classes if form == "folder" else pack(classes, tmp_path / "photos.zip"))
    with pytest.raises(DataError, match=r"cat2/7\.png.*--data\.skip-damaged true") as caught:
        opened(where)
    assert "BytesIO" not in str(caught.value)
    data = opened(where, skip_damaged=True)
    assert len(data.train) + len(data.validation) == 35
    assert any(note.startswith("Skipped 1 damaged files:") and "cat2/7.png" in note for note in data.notes)


def test_a_file_whose_checksum_is_wrong_in_the_zip_is_named(classes: Path, tmp_path: Path) -> None:
    archive = pack(classes, tmp_path / "photos.zip", method=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as packed:
        member = packed.getinfo("cat2/7.png")
    content[member.header_offset + 200] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"cat2/7\.png.*checksum"):
        opened(archive)


def test_only_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images"):
        opened(tmp_path, skip_damaged=True)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_many_files_are_checked_by_header_only(
    classes: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place() -> str:
        return str(classes if form == "folder" else pack(classes, tmp_path / "photos.zip"))

    monkeypatch.setattr(images_module, "FULL_CHECK", 10)
    monkeypatch.setattr(images_module, "_HEAD", 64)
    Image.new("RGB", (9, 30)).save(classes / "Bird" / "small.webp")  # its header is read from the whole file
    victim = classes / "cat2" / "7.png"
    victim.write_bytes(victim.read_bytes()[:-200])
    data = opened(place(), validation_fraction=0)
    assert data.notes[0].startswith("1 of 37 images are smaller")
    with pytest.raises(DataError, match=r"cat2/7\.png"):
        data.train.center_view(names(data)[0].index("cat2/7.png"))
    victim.write_bytes(b"")
    with pytest.raises(DataError, match=r"cat2/7\.png"):
        opened(place())


def test_added_files_move_no_other(classes: Path) -> None:
    train, validation = names(opened(classes))
    for number in range(12, 40):
        save(classes / "cat2" / f"{number}.png")
    later_train, later_validation = names(opened(classes))
    assert set(train) <= set(later_train)
    assert set(validation) <= set(later_validation)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_every_class_of_two_is_on_both_sides(classes: Path, fraction: float) -> None:
    for number in range(2):
        save(classes / "pair" / f"{number}.png")
    data = opened(classes, validation_fraction=fraction)
    assert set(data.train.labels.tolist()) == set(data.validation.labels.tolist()) == {0, 1, 2, 3}


def test_a_class_of_one_image_trains_and_is_said(classes: Path) -> None:
    save(classes / "single" / "0.png")
    data = opened(classes)
    label = data.class_names.index("single")
    assert label in data.train.labels
    assert label not in data.validation.labels
    assert data.notes == ("Classes of one image train and are absent from validation: single.",)
    none_held = opened(classes, validation_fraction=0)
    assert len(none_held.validation) == 0
    assert none_held.notes == ()


def test_smaller_images_are_enlarged_and_counted(classes: Path) -> None:
    save(classes / "Bird" / "tiny.png", 5, 40)
    save(classes / "Bird" / "thin.png", 40, 15)
    data = opened(classes)
    assert data.notes == ("2 of 38 images are smaller than 16 × 16 (rows × columns) and are enlarged.",)
    assert all(
        part.center_view(i).shape == (3, 16, 16) for part in (data.train, data.validation) for i in range(len(part))
    )


def test_unread_formats_are_said(classes: Path) -> None:
    (classes / "Bird" / "a.heic").write_bytes(b"x")
    data = opened(classes)
    (note,) = data.notes
    assert re.fullmatch(r"Only PNG, JPEG, .* are read; ignored: 1 \.heic \(for example Bird/a\.heic\)\.", note)
    assert "1 .heic" in data.left_out


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
        opened(classes, (6, 9), crop="random", token_views="ten-crop", flip=True, cache_mb=megabytes)
        for megabytes in (1, 0)
    )
    assert cached.train.views == fresh.train.views == 10
    for index in range(4):
        np.testing.assert_array_equal(cached.train.token_views(index), fresh.train.token_views(index))
        np.testing.assert_array_equal(
            cached.train.train_view(index, numpy_stream(index)), fresh.train.train_view(index, numpy_stream(index))
        )
    center = opened(classes, crop="center", token_views="center", flip=False).train
    np.testing.assert_array_equal(center.train_view(0, numpy_stream(0)), center.center_view(0))
    np.testing.assert_array_equal(center.token_views(0), center.center_view(0)[None])


def test_views_are_the_crops_of_the_whole_picture(classes: Path) -> None:
    """At a size where the kept picture would be too small if it were halved for the center crop alone."""
    train = opened(classes, (9, 11), flip=False).train
    for index, name in enumerate(names(opened(classes))[0]):
        whole = Image.open(classes / name)
        np.testing.assert_array_equal(train.center_view(index), crops.pixels(crops.center_crop(whole, (9, 11))))
        expected = crops.pixels(crops.random_crop(whole, (9, 11), numpy_stream(index)))
        np.testing.assert_array_equal(train.train_view(index, numpy_stream(index)), expected)


def test_links_are_followed_once_and_nothing_is_written(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cats").symlink_to(classes / "cat2")
    (tmp_path / "linked" / "birds").symlink_to(classes / "Bird")
    (classes / "cat2" / "loop").symlink_to(tmp_path / "linked")
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    data = opened(tmp_path / "linked")
    assert data.class_names == ("birds", "cats")
    data.train.center_view(0)
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_link_to_itself_is_named_as_one_file_or_skipped(classes: Path) -> None:
    for name in ("loop.png", "loop", ".loop"):
        (classes / "cat2" / name).symlink_to(name)
    with pytest.raises(DataError, match=r"cat2/loop\.png cannot be read .*--data\.skip-damaged true"):
        opened(classes)
    data = opened(classes, skip_damaged=True)
    assert len(data.train) + len(data.validation) == 36
    assert data.left_out[-1] == "1 damaged"


def test_an_oddly_packed_zip_is_refused(classes: Path, tmp_path: Path) -> None:
    archive = pack(classes, tmp_path / "photos.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match=r"Bird/0.png is compressed by method 14: pack the zip again"):
        opened(archive)
