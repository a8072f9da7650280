"""Files of folders and zips: names, links, damage, and that a zip gives what the folder gives."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.pictures import fill, names, opened, pack, place, same, save

from prologue.errors import DataError


@pytest.mark.parametrize("form", ["zip", "wrapped zip", "stored zip"])
@pytest.mark.parametrize("folders", [("cat10", "cat2", "Bird"), ("",), ("train/cat", "train/dog"), ("train", "val")])
def test_a_zip_gives_what_the_folder_gives(tmp_path: Path, folders: tuple[str, ...], form: str) -> None:
    root = fill(tmp_path / "photos", *folders, count=7)
    same(opened(place(root, form)), opened(root))


def zip_of(root: Path, written: Callable[[str], str]) -> Path:
    """The pictures below `root`, under names that `written` makes of their own."""
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(root.rglob("*.png")):
            packed.writestr(written(path.relative_to(root).as_posix()), path.read_bytes())
    return archive


def without_utf8_flags(archive: Path) -> Path:
    """The same zip from a tool that does not say which encoding its names have."""
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as packed:
        infos = packed.infolist()
    for info in infos:  # the flags of each local header
        content[info.header_offset + 7] &= 0xF7
    position = 0
    while (position := content.find(b"PK\x01\x02", position)) >= 0:  # and of the directory
        content[position + 9] &= 0xF7
        position += 4
    archive.write_bytes(content)
    return archive


@pytest.mark.parametrize("form", ["./{}", "/{}", "../{}", "C:/{}", "./photos/./{}", "a/../{}", "photos//{}"])
def test_names_in_a_zip_stay_inside_it(tmp_path: Path, form: str) -> None:
    root = fill(tmp_path / "photos", "cat", "dog")
    same(opened(zip_of(root, form.format)), opened(root))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_backslashes_and_repeated_entries_in_a_zip(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "cat", "dog")
    archive = zip_of(root, lambda name: name.replace("/", "\\"))
    same(opened(archive), opened(root))
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("cat\\1.png", (root / "dog" / "1.png").read_bytes())
    data = opened(archive)
    assert data.left_out == ("1 replaced by a later entry of the same name",)
    (root / "cat" / "1.png").write_bytes((root / "dog" / "1.png").read_bytes())
    same(data, opened(root))


def test_utf8_names_in_a_zip_without_the_flag(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "café", "cat")
    same(opened(without_utf8_flags(pack(root, tmp_path / "x.zip"))), opened(root))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_names_that_are_not_utf8(tmp_path: Path, form: str) -> None:
    root = fill(tmp_path / "photos", "a", "caf\udce9")
    os.rename(root / "a" / "0.png", root / "a" / "caf\udce9.png")
    # Latin-1, from a tool that does not say so.
    where = (
        root if form == "folder" else without_utf8_flags(zip_of(root, lambda name: os.fsencode(name).decode("cp437")))
    )
    data = opened(where)
    assert len(data.files) == 8
    data.summary(str(where)).encode()
    if form == "zip":
        return
    assert data.class_names == ("a", "caf\\xe9")
    (root / "a" / "caf\udce9.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"a/caf\\xe9\.png cannot be read as an image") as caught:
        opened(where)
    str(caught.value).encode()
    skipped = opened(where, skip_damaged=True)
    assert len(skipped.files) == 7
    " ".join(skipped.notes).encode()


def test_a_wrong_checksum_in_a_zip_is_named(tmp_path: Path) -> None:
    archive = place(fill(tmp_path / "photos", "cat"), "stored zip")
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as packed:
        content[packed.getinfo("cat/3.png").header_offset + 200] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"cat/3\.png.*checksum"):
        opened(archive)


def test_a_zip_of_another_compression_is_refused(tmp_path: Path) -> None:
    archive = pack(fill(tmp_path / "photos", "Bird"), tmp_path / "photos.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match=r"Bird/0.png is compressed by method 14: pack the zip again"):
        opened(archive)


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
def test_a_pipe_among_the_images_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert len(opened(tmp_path).files) == 4


LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege here")


@LINKS
@pytest.mark.skipif(os.name == "nt", reason="links to folders need to be marked as such on Windows")
def test_links_are_followed_once_and_nothing_is_written(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "cat2", "Bird")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cats").symlink_to(root / "cat2")
    (tmp_path / "linked" / "birds").symlink_to(root / "Bird")
    (root / "cat2" / "loop").symlink_to(tmp_path / "linked")
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    data = opened(tmp_path / "linked")
    assert data.class_names == ("birds", "cats")
    assert not any("loop" in name for name in names(data)[0])
    data.train.center_view(0)
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@LINKS
@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_to_itself_is_named_as_one_file_or_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "cat2")
    for name in ("loop.png", "loop", ".loop"):
        (tmp_path / "cat2" / name).symlink_to(name)
    with pytest.raises(DataError, match=r"cat2/loop\.png cannot be read .*--data\.skip-damaged true"):
        opened(tmp_path)
    data = opened(tmp_path, skip_damaged=True)
    assert len(data.files) == 4
    assert data.left_out[-1] == "1 damaged"


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
    save(empty / "damaged.png")
    (empty / "damaged.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images"):
        opened(empty, skip_damaged=True)
