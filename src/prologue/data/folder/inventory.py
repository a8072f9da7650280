"""The list of a run's image files, kept in its folder, so that a message can name the files that changed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from prologue.data.names import counted, readable, some
from prologue.data.source import FileRecord
from prologue.utils.files import write_whole

NAME = "data-files.jsonl.gz"
"""One JSON list [name, bytes, class] for each image file."""


def keep_inventory(run: Path, files: Sequence[FileRecord]) -> None:
    """Write the list into the folder of a run; without files (embedded images) write nothing."""
    if files and _read(run) != list(files):
        lines = "".join(json.dumps(record) + "\n" for record in files)
        write_whole(run / NAME, gzip.compress(lines.encode(), mtime=0))


def changed_files(run: Path, files: Sequence[FileRecord]) -> str | None:
    """A sentence on the files that differ from those of the run; None if no file differs or the run has no list."""
    kept = _read(run)
    if kept is None:
        return None
    before, now = ({record.name: record for record in records} for records in (kept, files))
    changes = [
        f"{readable(name)} ({_difference(before.get(name), now.get(name))})"
        for name in {*before, *now}
        if before.get(name) != now.get(name)
    ]
    if not changes:
        return None
    count = counted(len(changes), "image file differs", "image files differ")
    return f"{count}: {some(changes)}"


def _read(run: Path) -> list[FileRecord] | None:
    """The list in a run's folder; None if it is missing or damaged."""
    try:
        with gzip.open(run / NAME, "rt", encoding="utf-8") as file:
            return [FileRecord(*json.loads(line)) for line in file]
    except (OSError, EOFError, ValueError, TypeError):
        return None


def _difference(before: FileRecord | None, now: FileRecord | None) -> str:
    if before is None:
        return "added"
    if now is None:
        return "missing"
    if before.size != now.size:
        return f"{before.size} bytes then, {now.size} now"
    return f"class {before.label!r} then, {now.label!r} now"
