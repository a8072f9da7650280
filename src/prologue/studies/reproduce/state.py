"""What is needed to continue a study elsewhere, in a few small files: `state/state.json` and its parts.

Finished pieces are their results alone. Of the others, the one under way first, there are finished models and
checkpoints, where they fit; tokens are encoded again.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prologue.errors import ConfigError, RunError
from prologue.utils.files import write_whole
from prologue.utils.serialization import load_json, save_json

FOLDER = "state"
INDEX = "state.json"
PART_BYTES = 16 * 2**20
MOST_BYTES = 40 * 2**20
_SLACK = 2**16


@dataclass(frozen=True)
class Share:
    """Files or folders that are of use together only, and others that are of use beside them."""

    whole: Sequence[Path]
    beside: Sequence[Path] = ()


def pack(out: Path, needed: Sequence[Path], shares: Sequence[Share]) -> list[Path]:
    """Write the state: all of `needed`, then of the shares in their order what fits; what was left out comes back.

    Paths lie in `out`. A reader sees the old state or the new one. A `RunError` where not even the needed files fit.
    """
    files = [file for path in needed for file in _files(path)]
    total = _size(files) + _SLACK
    if total > MOST_BYTES:
        raise RunError(
            f"settings and results of {out} take {total / 2**20:.0f} MiB, more than the {MOST_BYTES // 2**20} that the "
            "packed state may: begin another study for more seeds"
        )
    left: list[Path] = []
    for share in shares:
        for group in (share.whole, share.beside):
            more = [file for path in group for file in _files(path)]
            if total + _size(more) > MOST_BYTES:
                left.extend(group)
                break
            total, files = total + _size(more), [*files, *more]
    content = _zipped(out, files)
    digest = hashlib.sha256(content).hexdigest()
    folder = out / FOLDER
    _forget_parts(folder, load_json(folder / INDEX)["parts"] if is_packed(out) else [])
    parts = []
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        part = folder / f"{digest[:12]}-{number}.part"
        if not part.is_file():  # what the index names already is not touched again
            write_whole(part, content[start : start + PART_BYTES])
        parts.append(part.name)
    save_json(folder / INDEX, {"parts": parts, "sha256": digest, "bytes": len(content)})
    _forget_parts(folder, parts)
    return left


def _forget_parts(folder: Path, but: Sequence[str]) -> None:
    """Remove the parts that belong to no state: of the one before, or of one whose writing was killed."""
    for old in (*folder.glob("*.part"), *folder.glob("*.tmp")):
        if old.name not in but:
            old.unlink()


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
        settings = [name for name in archive.namelist() if name == "study.json"]
        others = [name for name in archive.namelist() if name not in settings]
        _restore(archive, others, out)
        for path in (out / "runs").glob("*/run.json"):
            _forget_tokens(path)
        _restore(archive, settings, out)


def _restore(archive: zipfile.ZipFile, names: Sequence[str], out: Path) -> None:
    for name in names:
        target = (out / name).resolve()
        if not target.is_relative_to(out.resolve()):
            raise RunError(f"the state in {out / FOLDER} names a file outside of it: {name}")
        write_whole(target, archive.read(name))


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


def _size(files: Sequence[Path]) -> int:
    """Bytes that the files take in the state, at most."""
    return sum(file.stat().st_size + _SLACK // 64 for file in files)


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
