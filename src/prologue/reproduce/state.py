"""What is needed to continue a study elsewhere, in a few small files: `state/state.json` and its parts.

Finished pieces are their results alone. Of the piece that was under way there are its finished models and, where they
fit, its newest checkpoint; tokens are encoded again.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from prologue.errors import ConfigError, RunError
from prologue.plain import load_json, save_json

FOLDER = "state"
INDEX = "state.json"
PART_BYTES = 16 * 2**20
MOST_BYTES = 40 * 2**20
_SLACK = 2**16


def pack(out: Path, needed: Sequence[Path], wanted: Sequence[Path]) -> list[Path]:
    """Write the state: all of `needed`, and of `wanted` (files or folders) what fits; what was left out comes back.

    Paths lie in `out`. A reader sees the old state or the new one. A `RunError` where not even the needed files fit.
    """
    files = [file for path in needed for file in _files(path)]
    total = sum(file.stat().st_size + _SLACK // 64 for file in files) + _SLACK
    if total > MOST_BYTES:
        raise RunError(
            f"the state of {out} takes {total / 2**20:.0f} MiB, more than the {MOST_BYTES // 2**20} it may: "
            "continue in the folder itself, or choose smaller networks"
        )
    left = []
    for path in wanted:
        more = _files(path)
        size = sum(file.stat().st_size + _SLACK // 64 for file in more)
        if total + size > MOST_BYTES:
            left.append(path)
            continue
        total, files = total + size, [*files, *more]
    content = _zipped(out, files)
    digest = hashlib.sha256(content).hexdigest()
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        part = folder / f"{digest[:12]}-{number}.part"
        if not part.is_file():  # what the index names already is not touched again
            temporary = part.with_suffix(".tmp")
            temporary.write_bytes(content[start : start + PART_BYTES])
            temporary.replace(part)
        parts.append(part.name)
    save_json(folder / INDEX, {"parts": parts, "sha256": digest, "bytes": len(content)})
    for old in (*folder.glob("*.part"), *folder.glob("*.tmp")):
        if old.name not in parts:
            old.unlink()
    return left


def is_packed(out: Path) -> bool:
    return (out / FOLDER / INDEX).is_file()


def unpack(out: Path) -> None:
    """Restore what `pack` wrote into a folder that holds nothing else; a missing or damaged part is a `RunError`."""
    index = load_json(out / FOLDER / INDEX)
    try:
        content = b"".join((out / FOLDER / name).read_bytes() for name in index["parts"])
    except OSError as error:
        raise RunError(f"the state in {out / FOLDER} lacks a part ({error}): copy all of its files") from error
    if hashlib.sha256(content).hexdigest() != index["sha256"]:
        raise RunError(f"the state in {out / FOLDER} differs from its checksum: copy its files again")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # The settings come last: a restoration that was killed begins anew.
        names = sorted(archive.namelist(), key=lambda name: name == "study.json")
        for name in names:
            target = (out / name).resolve()
            if not target.is_relative_to(out.resolve()):
                raise RunError(f"the state in {out / FOLDER} names a file outside of it: {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(target.name + ".tmp")
            temporary.write_bytes(archive.read(name))
            temporary.replace(target)
    for path in (out / "runs").glob("*/run.json"):
        _forget_tokens(path)


def _forget_tokens(path: Path) -> None:
    """Tokens are not in the state, so a run must not take them for finished."""
    if (path.parent / "tokens").exists():
        return
    try:
        record = load_json(path)
        if record["stages"].pop("tokens", None) is not None:
            save_json(path, record)
    except (ConfigError, KeyError):
        return  # the run itself says what is wrong


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.endswith(".tmp"))


def _zipped(out: Path, files: Sequence[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in dict.fromkeys(files):
            # Text shrinks to a tenth, weights do not shrink.
            kind = zipfile.ZIP_DEFLATED if file.suffix in (".json", ".jsonl") else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(file.relative_to(out).as_posix())
            archive.writestr(info, file.read_bytes(), compress_type=kind)
    return buffer.getvalue()
