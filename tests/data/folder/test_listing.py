"""Labels and splits of a folder or zip, and what the user is told of files that are not used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.data.pictures import SIZE, fill, labelled, names, opened, place, save

from prologue.config import DataConfig
from prologue.data.source import open_data
from prologue.errors import DataError
from prologue.utils.serialization import save_json

FORMS = pytest.mark.parametrize("form", ["folder", "zip", "wrapped zip"])


@FORMS
def test_one_subfolder_per_class(tmp_path: Path, form: str) -> None:
    root = fill(tmp_path / "photos", "cat10", "cat2", "Bird", count=12)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not an image")
    (root / "cat2" / "Thumbs.db").write_bytes(b"not an image")
    data = opened(place(root, form))
    assert data.class_names == ("Bird", "cat2", "cat10")
    assert len(labelled(data)) == 36
    assert all(label == name.split("/")[0] for name, label in labelled(data).items())
    assert set(data.validation.labels.tolist()) == {0, 1, 2}
    assert data.notes == ()


def test_flat_images_have_no_classes(tmp_path: Path) -> None:
    data = opened(fill(tmp_path, "", count=9))
    assert data.class_names == ()
    assert data.num_classes == 0
    assert data.train.labels.tolist() == [0] * len(data.train)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(fill(tmp_path, "Bird") / "stray.png")
    with pytest.raises(DataError, match=r"stray.png and Bird/0.png"):
        opened(tmp_path)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_files_that_are_not_used_are_counted(tmp_path: Path, form: str) -> None:
    root = fill(tmp_path / "photos", "cat", "dog")
    for folder in ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "cat/@eaDir", ".Trash-1000"):
        save(root / folder / "x.png")
    (root / "empty").mkdir()
    (root / "phone").mkdir()
    (root / "phone" / "a.heic").write_bytes(b"x")
    (root / "cat" / "._0.png").write_bytes(b"x")
    data = opened(place(root, form))
    assert data.class_names == ("cat", "dog")
    assert set(data.left_out) == {
        "system folders ($RECYCLE.BIN, .Trash-1000, @eaDir, __MACOSX, System Volume Information)",
        "1 hidden",
        "1 .heic",
        "2 folders without an image (empty, phone)",
    }
    (note,) = data.notes
    assert re.fullmatch(r"Only PNG, JPEG, .* are read; ignored: 1 \.heic \(for example phone/a\.heic\)\.", note)


def test_the_summary_says_what_was_opened(tmp_path: Path) -> None:
    fill(tmp_path, "cat", count=3)
    fill(tmp_path, "dog", count=5)
    save(tmp_path / ".x.png")
    data = opened(tmp_path)
    assert data.summary("photos") == (
        "photos: 8 images in 2 classes (smallest cat with 3, largest dog with 5), "
        f"{len(data.validation)} held out; left out: 1 hidden"
    )
    flat = fill(tmp_path / "flat", "")
    assert opened(flat, validation_fraction=0).summary("flat") == "flat: 4 images without classes, 0 held out"
    shapes = open_data("shapes", DataConfig(shapes_images=8, shapes_validation=8), SIZE)
    assert shapes.summary("shapes") == "shapes: 16 images in 8 classes of 2 each, 8 held out"


MARKERS = {
    "run.json": {"format": 1, "config": {}, "facts": {}, "stages": {}},
    "generation.json": {"request": {}},
    "pipeline.json": {"format": 1, "class_names": []},
    "study.json": {"format": 1, "scale_name": "hours"},
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("name", MARKERS)
def test_folders_that_this_package_wrote_are_left_out(tmp_path: Path, name: str, form: str) -> None:
    root = fill(tmp_path / "photos", "cat", "dog", "made", "made/samples", "cat/made too")
    save_json(root / "made" / name, MARKERS[name])
    save_json(root / "cat" / "made too" / name, MARKERS[name])
    data = opened(place(root, form))
    assert data.class_names == ("cat", "dog")
    assert len(data.files) == 8
    assert data.left_out == ("folders written by prologue (cat/made too, made)",)


def test_a_file_of_another_tool_marks_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "run.json").write_text('{"weather": "dry"}')
    (tmp_path / "cat" / "run.json").write_text("no JSON")
    assert opened(tmp_path).class_names == ("cat", "dog")


def test_generated_images_can_be_given_and_a_run_cannot(tmp_path: Path) -> None:
    fill(tmp_path, "")
    save(tmp_path / "grid.png")
    save_json(tmp_path / "generation.json", MARKERS["generation.json"])
    assert {file.name for file in opened(tmp_path).files} == {"0.png", "1.png", "2.png", "3.png"}
    save_json(tmp_path / "run.json", MARKERS["run.json"])
    with pytest.raises(DataError, match=r"is a folder that prologue wrote \(run\.json\)"):
        opened(tmp_path)


@FORMS
@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Training", "VALIDATION", "Testing")])
def test_top_folders_named_after_splits_are_splits(tmp_path: Path, train: str, val: str, test: str, form: str) -> None:
    root = tmp_path / "photos"
    fill(root / train, "cat", "dog")
    fill(root / val, "cat", "dog", count=2)
    fill(root / test, "cat", "dog", "emu", count=1)
    where = place(root, form)
    data = opened(where)
    assert data.class_names == ("cat", "dog")
    assert [{name.split("/")[0] for name in part} for part in names(data)] == [{train}, {val}]
    assert labelled(data)[f"{train}/dog/3.png"] == "dog"
    (note,) = data.notes
    assert note.startswith(
        f"The top folders are splits, not classes: {train}/ holds the train images, {val}/ holds the validation images"
    )
    assert data.left_out == (f"3 test images in {test}/",)
    assert opened(where, file_rule=1).class_names == tuple(sorted((train, val, test), key=str.lower))


def test_without_a_validation_split_one_is_cut_from_the_training_images(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "test/cat")
    data = opened(tmp_path)
    assert len(labelled(data)) == 8
    assert {name.split("/")[0] for name in labelled(data)} == {"train"}
    assert set(data.validation.labels.tolist()) == {0, 1}
    assert "the validation images are taken from them" in data.notes[0]
    (tmp_path / "valid").mkdir()
    assert "1 folder without an image (valid)" in opened(tmp_path).left_out


@pytest.mark.parametrize(
    ("folders", "class_names", "train", "validation", "left_out"),
    [
        (("train", "val"), (), 4, 4, ()),
        (("val/cat", "val/dog"), ("cat", "dog"), 0, 8, ()),
        (
            ("train/cat", "val/cat", "val/emu"),
            ("cat",),
            *(4, 4),
            ("4 in val/ of classes without training images (emu)",),
        ),
    ],
)
def test_splits_with_and_without_classes(
    tmp_path: Path,
    folders: tuple[str, ...],
    class_names: tuple[str, ...],
    train: int,
    validation: int,
    left_out: tuple[str, ...],
) -> None:
    data = opened(fill(tmp_path, *folders))
    assert (len(data.train), len(data.validation)) == (train, validation)
    assert (data.class_names, data.left_out) == (class_names, left_out)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/a", "val/a", "validation/a"), r"val/ and validation/, which both mean the validation images"),
        (("train/a", "training/a"), r"which both mean the train images"),
        (("test/a",), r"only test images \(test/\): put training images into train/, or give .*/test itself"),
        (("train/a", "val"), r"the images in train/ have classes and those in val/ have none"),
    ],
)
def test_splits_that_contradict_each_other_are_refused(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(fill(tmp_path, *folders))


def test_classes_may_have_the_names_of_splits_beside_others(tmp_path: Path) -> None:
    data = opened(fill(tmp_path, "test", "train", "plane"))
    assert data.class_names == ("plane", "test", "train")
    assert data.notes == ()


def test_a_table_in_each_split_or_one_for_all(tmp_path: Path) -> None:
    fill(tmp_path, "train", "val", "test", count=2)
    for split in ("train", "val"):
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    each = labelled(opened(tmp_path))
    assert each == {"train/0.png": "a", "train/1.png": "b", "val/0.png": "a", "val/1.png": "b"}
    for split in ("train", "val"):
        (tmp_path / split / "metadata.csv").unlink()
    rows = [f"{split}/{n}.png,{'ab'[n]}" for split in ("train", "val", "test") for n in range(2)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert labelled(opened(tmp_path)) == each


def test_class_folders_are_named_in_one_spelling(tmp_path: Path) -> None:
    fill(tmp_path, "cafe\u0301", "cat")
    assert opened(tmp_path).class_names == ("caf\u00e9", "cat")
    assert opened(tmp_path, file_rule=1).class_names == ("cafe\u0301", "cat")
