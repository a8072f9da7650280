"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from prologue import files


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
