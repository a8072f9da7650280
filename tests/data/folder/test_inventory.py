"""A run names the files of its data that changed."""

from __future__ import annotations

from pathlib import Path

from prologue.data.folder.inventory import NAME, changed_files, keep_inventory
from prologue.data.source import FileRecord

FILES = [FileRecord(f"cat/{number}.png", 100 + number, "cat") for number in range(12)]


def test_the_first_files_that_differ_and_their_number(tmp_path: Path) -> None:
    keep_inventory(tmp_path, FILES)
    assert changed_files(tmp_path, FILES) is None
    now = [FileRecord("cat/0.png", 7, "cat"), FileRecord("cat/1.png", 101, "dog"), *FILES[3:]]
    now.append(FileRecord("caf\udce9.png", 5, None))
    assert changed_files(tmp_path, now) == (
        "4 image files differ: caf\\xe9.png (added), cat/0.png (100 bytes then, 7 now), "
        "cat/1.png (class 'cat' then, 'dog' now), cat/2.png (missing)"
    )
    assert changed_files(tmp_path, FILES[:2]) == (
        "10 image files differ: cat/2.png (missing), cat/3.png (missing), cat/4.png (missing), cat/5.png (missing), "
        "cat/6.png (missing) and 5 more"
    )


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    files = [FileRecord("caf\udce9\n.png", 5, None)]
    keep_inventory(tmp_path, files)
    assert changed_files(tmp_path, files) is None


def test_without_a_list_nothing_is_known_and_a_whole_one_is_not_written_again(tmp_path: Path) -> None:
    assert changed_files(tmp_path, FILES) is None
    keep_inventory(tmp_path, [])
    assert not (tmp_path / NAME).exists()
    keep_inventory(tmp_path, FILES)
    before = (tmp_path / NAME).stat().st_mtime_ns
    keep_inventory(tmp_path, FILES)
    assert (tmp_path / NAME).stat().st_mtime_ns == before
    (tmp_path / NAME).write_bytes(b"damaged")
    assert changed_files(tmp_path, FILES) is None
    keep_inventory(tmp_path, FILES)
    assert changed_files(tmp_path, FILES) is None
    assert changed_files(tmp_path, FILES[1:]) is not None
