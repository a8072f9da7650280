"""Locks exclude other processes and threads, and end with the process."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prologue.errors import RunError
from prologue.utils import locks

_HOLD = """
import sys, time
from pathlib import Path
from prologue.utils.locks import folder_lock

with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_the_first_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=f"another process is at work in {re.escape(str(tmp_path))}: wait"),
            locks.folder_lock(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locks.folder_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with locks.folder_lock(tmp_path):
        pass


def test_a_lock_is_held_once_by_a_thread_and_not_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    refused: list[RunError] = []

    def enter() -> None:
        try:
            with locks.folder_lock(tmp_path):
                pass
        except RunError as error:
            refused.append(error)

    with locks.folder_lock(tmp_path):
        enter()
        assert not refused
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_a_created_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with locks.folder_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with locks.folder_lock(tmp_path / "mine"):
        pass
    with locks.folder_lock(tmp_path / "made"):
        (tmp_path / "made" / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "mine"]
    with pytest.raises(RunError, match="is a file"), locks.folder_lock(tmp_path / "made" / "file"):
        pass


def test_a_file_is_written_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    code = _HOLD.replace("folder_lock", "file_lock").replace("600", "1")
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.npz")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=r"another process is writing .*a\.npz"), locks.file_lock(tmp_path / "a.npz"):
        pass
    with locks.file_lock(tmp_path / "b.npz"):
        pass
    waits: list[bool] = []
    with locks.file_lock(tmp_path / "a.npz", lambda: waits.append(True)):
        assert holder.wait(10) == 0
    assert waits == [True]
    holder.communicate()
    assert list(tmp_path.iterdir()) == []
