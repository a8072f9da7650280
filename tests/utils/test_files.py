"""Atomic writes."""

from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from prologue.data.pictures import SampleArchive
from prologue.errors import ConfigError
from prologue.utils import files


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "file.bin"
    files.write_whole(path, b"old")
    assert path.read_bytes() == b"old"
    synced: list[int] = []

    def lost(number: int) -> None:
        synced.append(number)
        raise OSError("the machine is gone")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", lost)
        with pytest.raises(OSError, match="gone"):
            files.write_whole(path, b"new")
    assert len(synced) == 1
    assert path.read_bytes() == b"old"
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_writers_of_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path, together = tmp_path / "file.bin", threading.Barrier(4)

    def write(letter: bytes) -> None:
        with files.atomic_write(path) as file:
            together.wait(10)
            for _ in range(100):
                file.write(letter * 1000)
                file.flush()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, (b"a", b"b", b"c", b"d")))
    assert path.read_bytes() in [letter * 100_000 for letter in (b"a", b"b", b"c", b"d")]
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


def test_old_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / f"{name}.tmp" for name in ("file.0123abcd", "file.01234567", "other.0123abcd"))
    for path in (old, fresh, other):
        path.write_bytes(b"part")
    for path in (old, other):
        os.utime(path, (0, 0))
    files.write_whole(tmp_path / "file", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", fresh.name, other.name]
    assert [files.temporary_of(name) for name in ("a.png.0123abcd.tmp", "a.tmp", "a.png")] == ["a.png", "a", None]


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.json").write_bytes(b"old")
    (tmp_path / "second").symlink_to(Path("far", "real.json"))
    (tmp_path / "first").symlink_to(tmp_path / "second")
    (tmp_path / "far" / "dangling").symlink_to("new.json")
    files.write_whole(tmp_path / "first", b"new")
    files.write_whole(tmp_path / "far" / "dangling", b"made")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "far" / "real.json").read_bytes() == b"new"
    assert (tmp_path / "far" / "new.json").read_bytes() == b"made"
    assert not list(tmp_path.rglob("*.tmp"))
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(ConfigError, match="leads to itself"):
        files.write_whole(tmp_path / "round", b"")


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither FIFOs nor /dev/fd")
def test_pipes_and_descriptors_are_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.npz"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(fifo.read_bytes)
        with SampleArchive(fifo, 1, (2, 3)) as archive:
            archive.add([np.zeros((2, 3, 3), dtype=np.uint8)])
            archive.finish(seeds=np.arange(1))
        content = read.result(10)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    (tmp_path / "copy.npz").write_bytes(content)
    assert sorted(np.load(tmp_path / "copy.npz")) == ["arr_0", "seeds"]
    ours, theirs = os.pipe()
    files.write_whole(Path(f"/dev/fd/{theirs}"), b"through a descriptor")
    os.close(theirs)
    with os.fdopen(ours, "rb") as reader:
        assert reader.read() == b"through a descriptor"
    assert files.is_stdout(Path("/dev/stdout"))
    with pytest.raises(ConfigError, match="is not open"):
        files.require_writable(Path("/dev/fd/9876"))


def test_devices_are_written_to(tmp_path: Path) -> None:
    files.write_whole(Path(os.devnull), b"gone")
    assert files.is_stream(Path(os.devnull))
    (tmp_path / "file").touch()
    assert not files.is_stream(tmp_path / "file")


def test_a_file_in_a_folder_that_cannot_be_written_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "file", os.open

    def refuse(name: str, flags: int, *mode: int) -> int:
        if str(name).endswith(".tmp"):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return opened(name, flags, *mode)

    path.write_bytes(b"a longer old content")
    before = path.stat().st_ino
    monkeypatch.setattr(files.os, "open", refuse)
    files.write_whole(path, b"new")
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", before)
    with pytest.raises(OSError, match="Permission denied") as caught:
        files.write_whole(tmp_path / "absent", b"new")
    assert caught.value.filename == str(tmp_path / "absent")


def test_an_error_of_a_full_disk_names_the_file_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space") as caught, files.atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space") as caught:
            files.write_whole(Path("/dev/full"), b"new")
        assert caught.value.filename == "/dev/full"


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, why in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "inside.json", "file is a file, not a folder"),
    ):
        with pytest.raises(ConfigError, match=why):
            files.require_writable(path)
    for path in (tmp_path / "file", tmp_path / "new" / "file", Path(os.devnull)):
        files.require_writable(path)
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        files.require_writable(tmp_path / "new" / "file")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no HOME and invents folders of unknown users")
def test_home_folders_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [files.expand(path) for path in ("~", "~/a b", "a~", "$HOME/a", "./~x")] == [
        *("/home/me", "/home/me/a b", "a~", "$HOME/a", "./~x")
    ]
    with pytest.raises(ConfigError, match="no user 'nobody-of-this-name'"):
        files.expand("~nobody-of-this-name/a")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("runs/a", "runs/a"),
        ("my run", "'my run'"),
        ("-out", "./-out"),
        ("-a b", "'./-a b'"),
        ("builtin:x", "builtin:x"),
    ],
)
def test_a_path_in_a_command_to_copy_is_one_word_and_no_option(path: str, word: str) -> None:
    assert files.in_shell(Path(path)) == word


def test_a_replacement_is_retried_while_the_target_is_open_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refused = tmp_path / "file", [PermissionError(), PermissionError()]
    replace = Path.replace

    def busy(source: Path, target: Path) -> Path:
        if refused:
            raise refused.pop()
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(PermissionError):
        files.write_whole(path, b"old")
    monkeypatch.setattr(files, "_RETRY_SECONDS", 60.0)
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
