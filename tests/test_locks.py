"""One process at a time in a folder: across processes, and freed by whatever ends the holder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prologue import locks
from prologue.errors import RunError

_HOLD = """
import sys, time
from pathlib import Path
from prologue.locks import alone_in

with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"another process is at work in {tmp_path}: wait"), locks.alone_in(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locks.alone_in(tmp_path):
        pass
    with locks.alone_in(tmp_path):
        pass


def test_a_file_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with locks.alone_in(tmp_path):
        pass
