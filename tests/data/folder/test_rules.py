"""Which files of a folder or zip are taken, what is said of the others, and what runs of the first rule keep."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from tests.data.pictures import SIZE, fill, labelled, names, opened, pack, same, save

from prologue.config import DataConfig
from prologue.data.decode import READS_AVIF
from prologue.data.source import open_data
from prologue.data.splits import place
from prologue.errors import ConfigError, DataError
from prologue.utils.serialization import save_json


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".bmp", ".tif", ".TIFF", ".gif", ".avif"])
def test_more_formats_are_taken(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not READS_AVIF:
        pytest.skip("Pillow reads no AVIF here")
    fill(tmp_path, "a")
    fill(tmp_path, "b", suffix=suffix)
    data = opened(tmp_path)
    assert data.class_names == ("a", "b")
    assert data.left_out == ()
    old = opened(tmp_path, file_rule=1)
    assert old.class_names == ("a",)
    assert len(old.train) + len(old.validation) == 4


def test_files_of_several_frames_give_the_first_and_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    first, second = Image.new("RGB", (20, 20), (250, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 250))
    first.save(tmp_path / "a" / "moving.gif", save_all=True, append_images=[second])
    data = opened(tmp_path, validation_fraction=0)
    assert data.notes == (
        "1 of 5 files hold several frames or pages; only the first is used (for example a/moving.gif).",
    )
    view = data.train.center_view(names(data)[0].index("a/moving.gif"))
    assert view[:, 8, 8].tolist() == [250, 0, 0]


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    for folder in ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "cat/@eaDir", ".Trash-1000"):
        save(tmp_path / folder / "x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"x")
    (tmp_path / "cat" / "._0.png").write_bytes(b"x")
    data = opened(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert set(data.left_out) == {
        "system folders ($RECYCLE.BIN, .Trash-1000, @eaDir, lost+found, System Volume Information)",
        "1 hidden",
        "1 .heic",
        "2 folders without an image (empty, phone)",
    }
    zipped = opened(pack(tmp_path, tmp_path.parent / "x.zip"))
    assert set(zipped.left_out) == set(data.left_out)


def test_an_unreadable_system_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a")
    (tmp_path / "lost+found").mkdir()
    scan = os.scandir

    def refusing(folder: Path) -> object:
        if Path(folder).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert opened(tmp_path).class_names == ("a",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert len(opened(tmp_path).files) == 4


def test_the_first_line_says_what_was_opened(tmp_path: Path) -> None:
    fill(tmp_path, "cat", count=3)
    fill(tmp_path, "dog", count=5)
    save(tmp_path / ".x.png")
    held = len(opened(tmp_path).validation)
    assert opened(tmp_path).summary("photos") == (
        f"photos: 8 images in 2 classes (smallest cat with 3, largest dog with 5), {held} held out; left out: 1 hidden"
    )
    flat = fill(tmp_path / "flat", "")
    assert opened(flat, validation_fraction=0).summary("flat") == ("flat: 4 images without classes, 0 held out")
    shapes = open_data("shapes", DataConfig(shapes_images=8, shapes_validation=8), SIZE)
    assert shapes.summary("shapes") == "shapes: 16 images in 8 classes of 2 each, 8 held out"


def marker(folder: Path, name: str = "run.json") -> None:
    contents = {
        "run.json": {"format": 1, "config": {}, "facts": {}, "stages": {}},
        "generation.json": {"request": {}},
        "pipeline.json": {"format": 1, "class_names": []},
        "study.json": {"format": 1, "scale_name": "hours"},
    }
    save_json(folder / name, contents[name])


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("name", ["run.json", "generation.json", "pipeline.json", "study.json"])
def test_folders_that_this_package_wrote_are_no_data(tmp_path: Path, name: str, form: str) -> None:
    root = fill(tmp_path / "photos", "cat", "dog", "made/samples", "cat/made too")
    fill(root, "made")
    marker(root / "made", name)
    marker(root / "cat" / "made too", name)
    data = opened(root if form == "folder" else pack(root, tmp_path / "photos.zip"))
    assert data.class_names == ("cat", "dog")
    assert len(data.files) == 8
    assert data.left_out == ("folders written by prologue (cat/made too, made)",)


def test_another_tools_file_of_the_same_name_is_no_mark(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "run.json").write_text('{"weather": "dry"}')
    (tmp_path / "cat" / "run.json").write_text("no JSON")
    assert opened(tmp_path).class_names == ("cat", "dog")


def test_generated_images_can_be_given_themselves_and_a_run_cannot(tmp_path: Path) -> None:
    fill(tmp_path, "")
    save(tmp_path / "grid.png")
    marker(tmp_path, "generation.json")
    assert {file.name for file in opened(tmp_path).files} == {"0.png", "1.png", "2.png", "3.png"}
    marker(tmp_path, "run.json")
    with pytest.raises(DataError, match=r"is a folder that prologue wrote \(run\.json\)"):
        opened(tmp_path)


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Training", "VALIDATION", "Testing")])
@pytest.mark.parametrize("form", ["folder", "zip", "wrapped zip"])
def test_top_folders_named_after_splits_are_splits(tmp_path: Path, train: str, val: str, test: str, form: str) -> None:
    root = tmp_path / "photos"
    fill(root / train, "cat", "dog")
    fill(root / val, "cat", "dog", count=2)
    fill(root / test, "cat", "dog", "emu", count=1)
    where = root if form == "folder" else pack(root, tmp_path / "p.zip", "" if form == "zip" else "photos/")
    data = opened(where)
    assert data.class_names == ("cat", "dog")
    assert {name.split("/")[0] for name in names(data)[0]} == {train}
    assert {name.split("/")[0] for name in names(data)[1]} == {val}
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
    assert len(data.train) + len(data.validation) == 8
    assert {name.split("/")[0] for name in (*names(data)[0], *names(data)[1])} == {"train"}
    assert set(data.validation.labels.tolist()) == {0, 1}
    assert "the validation images are cut from them" in data.notes[0]
    (tmp_path / "valid").mkdir()
    assert "1 folder without an image (valid)" in opened(tmp_path).left_out


def test_splits_of_images_without_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train", "val")
    data = opened(tmp_path)
    assert data.class_names == ()
    assert (len(data.train), len(data.validation)) == (4, 4)
    same(opened(pack(tmp_path, tmp_path.parent / "x.zip")), data)


def test_a_zip_of_training_images_alone_is_what_the_folder_is(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "train/cat", "train/dog")
    same(opened(pack(root, tmp_path / "x.zip")), opened(root))


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
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_classes_may_bear_the_names_of_splits_beside_others(tmp_path: Path) -> None:
    fill(tmp_path, "test", "train", "plane")
    data = opened(tmp_path)
    assert data.class_names == ("plane", "test", "train")
    assert data.notes == ()


def test_validation_classes_that_are_not_trained_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "val/cat", "val/emu")
    data = opened(tmp_path)
    assert data.class_names == ("cat",)
    assert data.left_out == ("4 in val/ of classes without training images (emu)",)
    assert len(data.validation) == 4


def test_validation_images_alone_can_be_measured(tmp_path: Path) -> None:
    fill(tmp_path, "val/cat", "val/dog")
    data = opened(tmp_path)
    assert (len(data.train), len(data.validation), data.class_names) == (0, 8, ("cat", "dog"))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_names_that_are_not_utf8(tmp_path: Path, form: str) -> None:
    root = fill(tmp_path / "photos", "a", "caf\udce9")
    os.rename(root / "a" / "0.png", root / "a" / "caf\udce9.png")
    where = root
    if form == "zip":  # written as Latin-1 by a tool that does not say so
        where = tmp_path / "photos.zip"
        with zipfile.ZipFile(where, "w") as archive:
            for path in sorted(root.rglob("*.png")):
                info = zipfile.ZipInfo(os.fsencode(path.relative_to(root)).decode("cp437"))
                archive.writestr(info, path.read_bytes())
        data = open_without_utf8_flags(where)
    else:
        data = opened(where)
        assert data.class_names == ("a", "caf\\xe9")
    assert len(data.files) == 8
    data.summary(str(where)).encode()
    (root / "a" / "caf\udce9.png").write_bytes(b"damaged")
    if form == "folder":
        with pytest.raises(DataError, match=r"a/caf\\xe9\.png cannot be read as an image") as caught:
            opened(where)
        str(caught.value).encode()
        skipped = opened(where, skip_damaged=True)
        assert len(skipped.files) == 7
        " ".join(skipped.notes).encode()


def open_without_utf8_flags(where: Path) -> object:
    content = bytearray(where.read_bytes())
    with zipfile.ZipFile(where) as archive:
        infos = archive.infolist()
    for info in infos:  # the flags of each local header
        content[info.header_offset + 7] &= 0xF7
    position = 0
    while (position := content.find(b"PK\x01\x02", position)) >= 0:  # and of the directory
        content[position + 9] &= 0xF7
        position += 4
    where.write_bytes(content)
    return opened(where)


def test_the_place_of_a_name_is_that_of_the_first_versions() -> None:
    assert place("cat/1.png") == 0.41497065056175686
    assert place("Käfer/é.png") == 0.8475201667357943
    assert 0 <= place("caf\udce9.png") < 1


def pack_as(root: Path, archive: Path, form: str) -> Path:
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(root.rglob("*.png")):
            packed.writestr(form.format(path.relative_to(root).as_posix()), path.read_bytes())
    return archive


@pytest.mark.parametrize("form", ["./{}", "/{}", "../{}", "C:/{}", "./photos/./{}", "a/../{}", "photos//{}"])
def test_names_in_a_zip_lead_nowhere_else(tmp_path: Path, form: str) -> None:
    root = fill(tmp_path / "photos", "cat", "dog")
    same(opened(pack_as(root, tmp_path / "x.zip", form)), opened(root))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_backslashes_and_repeated_entries_in_a_zip(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "cat", "dog")
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("cat\\0.png", b"an earlier state")
        for path in sorted(root.rglob("*.png")):
            packed.writestr(path.relative_to(root).as_posix().replace("/", "\\"), path.read_bytes())
    data = opened(archive)
    same(data, opened(root))
    assert data.left_out == ("1 that a later entry of the same name replaces",)


def test_utf8_names_in_a_zip_that_does_not_say_so(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "café", "cat")
    archive = pack(root, tmp_path / "x.zip")
    data = open_without_utf8_flags(archive)
    same(data, opened(root))  # type: ignore[arg-type]


def test_class_folders_are_named_in_one_spelling(tmp_path: Path) -> None:
    fill(tmp_path, "cafe\u0301", "cat")
    assert opened(tmp_path).class_names == ("caf\u00e9", "cat")
    assert opened(tmp_path, file_rule=1).class_names == ("cafe\u0301", "cat")


def test_a_run_of_the_first_rule_keeps_skipping_what_it_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    exif = b"Exif\0\0no TIFF"
    Image.new("RGB", (20, 20)).save(tmp_path / "a" / "odd.png", exif=exif)
    Image.new("RGB", (20, 20)).save(tmp_path / "a" / "tiff.png", "TIFF")
    assert len(opened(tmp_path).files) == 6
    assert len(opened(tmp_path, file_rule=1, skip_damaged=True).files) == 4
    with pytest.raises(SyntaxError), Image.open(tmp_path / "a" / "odd.png") as image:
        ImageOps.exif_transpose(image)


def test_the_rules_agree_on_what_the_first_versions_could_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    for number in range(4):  # of the same size with every version of Pillow, unlike a PNG
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "cat" / f"{number}.png", "BMP")
        Image.new("RGB", (20, 24), (number, 0, 0)).save(tmp_path / "dog" / f"{number}.png", "BMP")
    same(opened(tmp_path), opened(tmp_path, file_rule=1))
    assert opened(tmp_path, file_rule=1).fingerprint == "8829140951839ea21a6a8fd908656c31"
    with pytest.raises(ConfigError, match=r"data\.file_rule must be none or 1 to 2, not 3"):
        DataConfig(file_rule=3)


def test_large_pictures_name_the_field_that_allows_them(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    with pytest.raises(DataError, match=r"0\.png is too large: .* 480 pixels.*--data\.max-pixels 480"):
        opened(tmp_path, max_pixels=479)
    assert len(opened(tmp_path, max_pixels=480).files) == 4
