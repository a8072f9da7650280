"""Files that are whole or not there at all, wherever a path leads: a file behind links, a pipe, a device."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from prologue.errors import ConfigError

STDOUT = 1
_MOST_LINKS = 40
_SPOOLED = 64 << 20
"""Bytes that wait in memory before they go to a stream; more wait in a temporary file."""
_STALE_SECONDS = 3600.0
"""A temporary file that nobody has written to for so long belongs to a process that is gone."""
_TEMPORARY = re.compile(r"(.+?)(?:\.[0-9a-f]{8})?\.tmp")


def expand(path: str) -> str:
    """A path with `~` and `~NAME` as the folder of that user; `$NAME` is left to the shell.

    An unknown user is a `ConfigError`, for a folder called `~NAME` would be made otherwise.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ConfigError(f"{path}: there is no user {user[1:]!r}; write ./{path} for a folder of the name {user}")
    return expanded


def in_shell(path: Path | str) -> str:
    """A path as one word of a command that users copy: quoted where a shell needs it, and never taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def temporary_of(name: str) -> str | None:
    """The name of the file that a temporary file was to become; None for the name of any other file."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match is not None else None


def destination(path: Path) -> Path | int:
    """Where writing to `path` ends: the path behind all links, or the number of an open descriptor of this process."""
    opened = {os.path.realpath(folder) for folder in ("/proc/self/fd", "/dev/fd")}
    here = path
    for _ in range(_MOST_LINKS):
        parent = os.path.realpath(here.parent)
        if parent in opened and here.name.isdecimal():
            return int(here.name)
        here = Path(parent, here.name)
        if not here.is_symlink():
            return here
        here = here.parent / os.readlink(here)
    raise ConfigError(f"{path} is a link that leads to itself: give another path")


def is_stream(path: Path) -> bool:
    """Whether what is written to `path` goes to a pipe, a device or an open descriptor: nothing is replaced there."""
    end = destination(path)
    if isinstance(end, int):
        return True
    with suppress(OSError):
        mode = end.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def is_stdout(path: Path) -> bool:
    """Whether what is written to `path` arrives where the standard output of this process goes."""
    end = destination(path)
    if end == STDOUT or not is_stream(path):
        return end == STDOUT
    try:
        found = os.fstat(end) if isinstance(end, int) else end.stat()
        return stat.S_ISFIFO(found.st_mode) and os.path.samestat(found, os.fstat(STDOUT))
    except OSError:
        return False


def require_writable(path: Path) -> None:
    """A `ConfigError` where a file cannot be written to `path`; nothing is opened or made."""
    end = destination(path)
    if isinstance(end, int):
        try:
            os.fstat(end)
        except OSError as error:
            raise ConfigError(f"{path} is not open: {error.strerror}") from error
        return
    if end.is_dir():
        raise ConfigError(f"{path} is a folder: name a file in it")
    if end.exists() and os.access(end, os.W_OK):
        return
    folder = next(parent for parent in end.parents if parent.exists())
    if not folder.is_dir():
        raise ConfigError(f"{path} cannot be written: {folder} is a file, not a folder")
    if is_stream(path) or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written: {os.strerror(errno.EACCES)}; give another path")


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """The path of a new file that takes the place of `path` where the block succeeds, and is removed where it fails.

    No other writer has this path. The folder is made where it is missing. `durable` waits until the disk has the file,
    which many small files need not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        _forget_leftovers(path)
    stem = path.name if len(os.fsencode(path.name)) <= 240 else path.name[:60]
    temporary = path.with_name(f"{stem}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # as the umask has it, whatever the block does to the file
    os.close(descriptor)
    try:
        yield temporary
        temporary.chmod(mode)
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _forget_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` have left beside it."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(path.name) and temporary_of(entry.name) == path.name:
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                        os.unlink(entry)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write so that a reader sees the old one or the new one, never a part, also after a machine was lost.

    Its folder is made where it is missing. Where the block fails, the old file stays. The target of a link is replaced,
    not the link; pipes, devices and descriptors get everything once the block has succeeded, and so does a file in a
    folder where no other can be made. An `OSError` names `path`. For `durable` see `replacing`.
    """
    end = destination(path)
    try:
        if isinstance(end, int) or is_stream(end):
            with _spooled(end) as file:
                yield file
            return
        with _beside(end, durable) as file:
            yield file
    except OSError as error:
        unnamed = error.filename is None or temporary_of(Path(str(error.filename)).name) is not None
        if error.errno is None or end == STDOUT or not unnamed:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def _beside(path: Path, durable: bool) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path`; where none can be made, one that is copied into it."""
    replaced = replacing(path, durable)
    try:
        temporary = replaced.__enter__()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not os.access(path, os.W_OK):
            raise
        with _spooled(path) as file:
            yield file
        return
    try:
        with temporary.open("wb") as file:
            yield file
    except BaseException:
        replaced.__exit__(*sys.exc_info())
        raise
    replaced.__exit__(None, None, None)


@contextmanager
def _spooled(end: Path | int) -> Iterator[BinaryIO]:
    """A temporary file whose content is written to `end` where the block succeeds."""
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED) as file:
        yield cast(BinaryIO, file)
        file.seek(0)
        if end == STDOUT:
            sys.stdout.flush()
        with os.fdopen(os.dup(end), "wb") if isinstance(end, int) else end.open("wb") as target:
            shutil.copyfileobj(file, target)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; a file name in the text that is not Unicode is escaped."""
    write_whole(path, text.encode(errors="backslashreplace"))


def cache_folder() -> Path:
    """The user's cache of this package."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # By the standard of these folders a relative path is to be ignored; without a home the cache is a temporary one.
    home = Path(os.path.expanduser("~"))
    base = (
        Path(cache) if os.path.isabs(cache) else home / ".cache" if home.is_absolute() else Path(tempfile.gettempdir())
    )
    return base / "prologue"
