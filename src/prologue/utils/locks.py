"""Locks on folders and files, held by one process at a time; they end with the process, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from prologue.errors import RunError

LOCK = ".lock"
"""Name of a folder's lock file. It is removed with the lock; a file that a killed process left behind does not lock."""
PATIENCE = 10.0
"""Seconds to wait for a lock, because a process that was just killed may need time to end."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())
"""The folders that this thread has locked; calls inside the block may lock them again."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder, which is created if missing. A created folder is removed after the block if it is empty.

    On a file system without locks, the block runs without a lock.

    Raises:
        RunError: another process keeps the lock, or `folder` is a file.
    """
    key = os.path.realpath(folder)
    if key in _held.get():
        yield
        return
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    busy = f"another process is at work in {folder}: wait until it has ended or stop it, or choose another --out"
    try:
        with _locked(folder / LOCK, busy):
            before = _held.set(_held.get() | {key})
            try:
                yield
            finally:
                _held.reset(before)
    finally:
        with suppress(OSError):
            for parent in created:
                parent.rmdir()


@contextmanager
def file_lock(file: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Lock one file, by a hidden file beside it.

    With `waiting`, wait without a limit while another process keeps the lock. `waiting` is called once before the wait.

    Raises:
        RunError: another process keeps the lock for more than a few seconds, and `waiting` is not given.
    """
    busy = f"another process is writing {file}: wait until it has ended or stop it, or give another file"
    with _locked(file.with_name(f".{file.name}{LOCK}"), busy, waiting):
        yield


@contextmanager
def _locked(path: Path, busy: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(path)
    if path.parent.exists() and not path.parent.is_dir():
        raise RunError(f"{path.parent} is a file: give a folder with --out")
    patience = PATIENCE if waiting is None else 0.0
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
            break
        except filelock.Timeout as error:
            if waiting is None:
                raise RunError(busy) from error
            waiting()
            patience = -1.0  # without limit
        except FileNotFoundError:  # another process removed the folder that it had created
            continue
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            break  # the file system has no locks
    try:
        yield
    finally:
        with suppress(OSError):  # Windows refuses this while the lock is held, and removes the file at the release
            path.unlink()
        lock.release()
