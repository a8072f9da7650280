"""Atomic writes to files, and writes to pipes, devices and open descriptors under the same interface."""

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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from prologue.errors import ConfigError

STDOUT = 1
_MOST_LINKS = 40
_SPOOLED = 64 << 20
"""Largest number of bytes for a stream that are held in memory. Larger contents are held in a temporary file."""
_STALE_SECONDS = 3600.0
"""Age of a temporary file after which its writer is assumed to have ended."""
_RETRY_SECONDS = 2.0 if os.name == "nt" else 0.0
"""How long a replacement is retried: Windows refuses it while another process has the old file open."""
_TEMPORARY = re.compile(r"(.+?)(?:\.[0-9a-f]{8})?\.tmp")


def expand(path: str) -> str:
    """Expand `~` and `~NAME` to the home folder of that user; `$NAME` is left to the shell.

    Raises:
        ConfigError: there is no such user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ConfigError(f"{path}: there is no user {user[1:]!r}; write ./{path} for a folder named {user}")
    return expanded


def in_shell(path: Path | str) -> str:
    """Quote a path as one word of a command that users copy; it never starts with a dash."""
    text = path.as_posix() if isinstance(path, Path) else path
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def temporary_of(name: str) -> str | None:
    """Return the name of the file that a temporary file would replace; None for other files."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match is not None else None


def destination(path: Path) -> Path | int:
    """Follow links: return the path behind them, or the number of an open descriptor of this process."""
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
    """Return whether `path` is a pipe, a device or an open descriptor, which is written to and not replaced."""
    end = destination(path)
    if isinstance(end, int):
        return True
    with suppress(OSError):
        mode = end.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def is_stdout(path: Path) -> bool:
    """Return whether `path` leads to the standard output of this process."""
    end = destination(path)
    if end == STDOUT or not is_stream(path):
        return end == STDOUT
    try:
        found = os.fstat(end) if isinstance(end, int) else end.stat()
        return stat.S_ISFIFO(found.st_mode) and os.path.samestat(found, os.fstat(STDOUT))
    except OSError:
        return False


def require_writable(path: Path) -> None:
    """Raise `ConfigError` if a file cannot be written to `path`. Nothing is opened or created."""
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
    """Yield the path of a new file, which replaces `path` if the block succeeds and is removed if it fails.

    The file name is unique to this writer. The folder is created if missing. `durable` waits until the file is on the
    disk. Many small files do not need this.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        _remove_stale(path)
    stem = path.name if len(os.fsencode(path.name)) <= 240 else path.name[:60]
    temporary = path.with_name(f"{stem}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # from the umask; kept if the block replaces the file
    os.close(descriptor)
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as written:  # Windows syncs only files that are open for writing
                os.fsync(written.fileno())
        temporary.chmod(mode)
        _replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which may exist."""
    deadline = time.monotonic() + _RETRY_SECONDS
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def _remove_stale(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(path.name) and temporary_of(entry.name) == path.name:
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                        os.unlink(entry)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing. Readers see either the old content or the complete new content, even after a crash.

    The folder is created if missing. If the block fails, the old file stays. The target of a link is replaced, not the
    link. Pipes, devices, descriptors, and files in a read-only folder receive the content after the block has
    succeeded. For `durable` see `replacing`.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    end = destination(path)
    try:
        with ExitStack() as stack:
            if isinstance(end, int) or is_stream(end):
                yield stack.enter_context(_spooled(end))
            else:
                yield _beside(end, durable, stack)
    except OSError as error:
        unnamed = error.filename is None or temporary_of(Path(str(error.filename)).name) is not None
        if error.errno is None or end == STDOUT or not unnamed:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _beside(path: Path, durable: bool, stack: ExitStack) -> BinaryIO:
    """Open a temporary file beside `path`, or one that is copied into `path` if the folder allows no new files."""
    try:
        temporary = stack.enter_context(replacing(path, durable))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not os.access(path, os.W_OK):
            raise
        return stack.enter_context(_spooled(path))
    return stack.enter_context(temporary.open("wb"))


@contextmanager
def _spooled(end: Path | int) -> Iterator[BinaryIO]:
    """Open a temporary file whose content is written to `end` if the block succeeds."""
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED) as file:
        yield cast(BinaryIO, file)
        file.seek(0)
        if end == STDOUT:
            sys.stdout.flush()
        with os.fdopen(os.dup(end), "wb") if isinstance(end, int) else end.open("wb") as target:
            shutil.copyfileobj(file, target)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; file names in the text that are not valid Unicode are escaped."""
    write_whole(path, text.encode(errors="backslashreplace"))


def cache_folder() -> Path:
    """Return the user's cache folder of this package."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard ignores relative paths. Without a home folder the cache is temporary.
    home = Path(os.path.expanduser("~"))
    base = (
        Path(cache) if os.path.isabs(cache) else home / ".cache" if home.is_absolute() else Path(tempfile.gettempdir())
    )
    return base / "prologue"
