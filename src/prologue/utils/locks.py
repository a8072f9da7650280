"""One process at a time works in a folder, or on a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from prologue.errors import RunError

LOCK = ".lock"
"""The file of a folder that is locked. It goes with the lock; one that a kill has left means nothing."""
PATIENCE = 10.0
"""Seconds: what was killed a moment ago may take some to be gone."""
_FOREVER = -1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())
"""The folders that this thread holds: what it calls works in them without another lock."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing; it ends with the process, however that ends.

    A `RunError` where another process keeps holding it, or `folder` is a file. File systems without locks have none.
    A folder that was made here, and in which the block has left nothing, is removed again.
    """
    key = os.path.realpath(folder)
    if key in _held.get():
        yield
        return
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    busy = f"another process is at work in {folder}: wait until it has ended or stop it, or choose another --out"
    with _locked(folder / LOCK, busy, PATIENCE):
        before = _held.set(_held.get() | {key})
        try:
            yield
        finally:
            _held.reset(before)
            with suppress(OSError):
                (folder / LOCK).unlink()
                for parent in made:
                    parent.rmdir()


@contextmanager
def file_lock(file: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of one file, which is a hidden file beside it.

    With `waiting`, which is called once before a wait, wait for whoever holds it; without, a `RunError` after a few
    seconds.
    """
    path = file.with_name(f".{file.name}{LOCK}")
    busy = f"another process is writing {file}: wait until it has ended or stop it, or give another file"
    with _locked(path, busy, PATIENCE if waiting is None else _FOREVER, waiting):
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def _locked(path: Path, busy: str, patience: float, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(path)
    if path.parent.exists() and not path.parent.is_dir():
        raise RunError(f"{path.parent} is a file: give a folder with --out")
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if waiting is None:
                lock.acquire(timeout=patience)
                break
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waiting()
                lock.acquire(timeout=patience)
            break
        except filelock.Timeout as error:
            raise RunError(busy) from error
        except FileNotFoundError:  # whoever made the folder had no use for it and has removed it
            continue
        except NotImplementedError:  # the file system cannot
            break
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            break
    try:
        yield
    finally:
        lock.release()
