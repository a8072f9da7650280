"""One process at a time works in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prologue.errors import RunError

LOCK = ".lock"
"""The file of a folder that is locked; it stays, and means nothing by itself."""
PATIENCE = 10.0
"""Seconds: what was killed a moment ago may take some to be gone."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder; it ends with the process, however that ends.

    A `RunError` where another process keeps holding it. File systems without locks have none.
    """
    import filelock

    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout as error:
        raise RunError(
            f"another process is at work in {folder}: wait until it has ended or stop it, or choose another --out"
        ) from error
    except NotImplementedError:  # the file system cannot
        pass
    try:
        yield
    finally:
        lock.release()
