"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write so that a reader sees the old one or the new one, never a part, also after a machine was lost.

    Its folder is made where it is missing. Where the block fails, the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with whole(path) as file:
        file.write(content)
