"""Files of a folder or a zip, read in place and never written to."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prologue.data.decode import damaged
from prologue.data.folder.rules import FileRule
from prologue.data.names import parents, readable
from prologue.errors import DataError

_LOCAL_HEADER = 30
_LOCAL_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 1
_UTF8_NAME = 0x800


@dataclass
class LeftOut:
    """Files that a storage leaves out."""

    folders: set[str] = field(default_factory=set)
    """Names of system folders."""
    images: int = 0
    """Hidden image files outside of such folders."""
    repeated: int = 0
    """Entries of a zip that a later one of the same name replaces."""


class Storage(Protocol):
    """Named files with sizes. Names are relative, with forward slashes; system files are left out."""

    sizes: dict[str, int]
    """Bytes of each file, by name."""
    stamps: dict[str, int]
    """A number that changes when a file is written again: its modification time in a folder, its checksum in a zip."""
    folders: set[str]
    """All folders, including empty ones."""
    left_out: LeftOut

    def shown(self, name: str) -> str:
        """The whole path of a file as printable text."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file, from any thread. Raises `DataError` naming it if it cannot be read."""
        ...

    def head(self, name: str, length: int) -> bytes:
        """At most the first `length` bytes, unchecked. Raises `DataError` as `read` does."""
        ...


def open_storage(where: str, rule: FileRule) -> Storage:
    """Open a folder or zip. Raises `DataError` if there is none at `where`."""
    path = Path(where).expanduser()
    try:
        if path.is_dir():
            return FolderStorage(path, rule)
        if path.is_file():
            return ZipStorage(path, rule)
    except OSError as error:
        raise DataError(f"{readable(where)} cannot be opened: {error.strerror or error}") from error
    raise DataError(
        f"there is no folder or zip named {readable(where)}: give the path of one, an embedded set (shapes, digits or "
        "plates), or module:Name of your own data source"
    )


class FolderStorage:
    """All files below a folder. Links are followed, except a link to a folder that contains it."""

    def __init__(self, root: Path, rule: FileRule) -> None:
        self._root, self._rule = root, rule
        self.sizes: dict[str, int] = {}
        self.stamps: dict[str, int] = {}
        self.folders: set[str] = set()
        self.left_out = LeftOut()
        self._walk(root, "", frozenset())

    def _walk(self, folder: Path, prefix: str, above: frozenset[str]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            raise DataError(
                f"the folder {readable(str(folder))} cannot be read ({error.strerror}): change its permissions, or "
                "move it elsewhere"
            ) from error
        for entry in entries:
            name = prefix + entry.name
            if self._rule.is_system(entry.name):
                if _is_folder(entry):
                    self.left_out.folders.add(entry.name)
                else:
                    self.left_out.images += self._rule.is_image(entry.name)
            elif _is_folder(entry):
                self.folders.add(name)
                self._walk(folder / entry.name, f"{name}/", above | {real})
            else:
                try:
                    status = entry.stat()
                except OSError:  # a broken link, or a link to itself: reading it raises the error
                    self.sizes[name] = self.stamps[name] = 0
                    continue
                if stat.S_ISREG(status.st_mode):  # reading a pipe would block
                    self.sizes[name], self.stamps[name] = status.st_size, status.st_mtime_ns

    def shown(self, name: str) -> str:
        return readable(str(self._root / name))

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, length: int) -> bytes:
        try:
            with (self._root / name).open("rb") as file:
                return file.read(length)
        except OSError as error:
            raise damaged(self.shown(name), error.strerror or str(error)) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. A link that cannot be followed is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class ZipStorage:
    """All files of a zip. If everything lies in one top folder, names are relative to that folder.

    Each read opens the zip again and goes straight to the file, so threads and processes share nothing.
    """

    def __init__(self, path: Path, rule: FileRule) -> None:
        self._path = path
        self.left_out = LeftOut()
        try:
            with zipfile.ZipFile(path) as archive:
                named = [(_entry_name(info, rule), info) for info in archive.infolist()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(
                f"{readable(str(path))} is neither a folder nor a readable zip ({error}): "
                "give a folder of images or a zip of one"
            ) from error
        kept: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for name, info in named:
            if self._leaves_out(name, rule, info.is_dir()):
                continue
            if info.is_dir():
                folders.add(name)
            else:
                self.left_out.repeated += name in kept
                kept[name] = info
        tops = {name.partition("/")[0] for name in kept}
        wrapped = len(tops) == 1 and all("/" in name for name in kept) and rule.split_of(min(tops)) is None
        self._prefix = tops.pop() + "/" if wrapped else ""
        folders.update(parent for name in kept for parent in parents(name))
        self.folders = {name.removeprefix(self._prefix) for name in folders if name.startswith(self._prefix)}
        self._members = {name.removeprefix(self._prefix): info for name, info in kept.items()}
        self.sizes = {name: info.file_size for name, info in self._members.items()}
        self.stamps = {name: info.CRC for name, info in self._members.items()}

    def _leaves_out(self, name: str, rule: FileRule, is_folder: bool) -> bool:
        parts = name.split("/")
        system = next((index for index, part in enumerate(parts) if rule.is_system(part)), None)
        if system is None:
            return not name
        if is_folder or system < len(parts) - 1:
            self.left_out.folders.add(parts[system])
        else:
            self.left_out.images += rule.is_image(name)
        return True

    def shown(self, name: str) -> str:
        return readable(f"{self._path}/{self._prefix}{name}")

    def read(self, name: str) -> bytes:
        info = self._members[name]
        data = self.head(name, info.file_size)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise damaged(self.shown(name), "its checksum in the zip is wrong")
        return data

    def head(self, name: str, length: int) -> bytes:
        info = self._members[name]
        encrypted = info.flag_bits & _ENCRYPTED
        if encrypted or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "encrypted" if encrypted else f"compressed by method {info.compress_type}"
            raise DataError(f"{self.shown(name)} is {how}: pack the zip again with deflate or store")
        try:
            return self._expand(info, min(length, info.file_size))
        except (OSError, zlib.error, struct.error) as error:
            raise damaged(self.shown(name), str(error)) from error

    def _expand(self, info: zipfile.ZipInfo, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
            if header[:4] != _LOCAL_MAGIC:
                raise OSError("the zip's directory points to no file")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            file.seek(name_length + extra_length, os.SEEK_CUR)
            if info.compress_type == zipfile.ZIP_STORED:
                return file.read(length)
            # For `length` bytes of output, `length` bytes of input are enough. A slightly shorter output does no harm.
            whole = length == info.file_size
            raw = file.read(info.compress_size if whole else min(info.compress_size, length))
        # `length` bounds the output, even if the stream would expand to more.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, length) if length else b""


def _entry_name(info: zipfile.ZipInfo, rule: FileRule) -> str:
    """A relative name with forward slashes that stays inside the zip."""
    name = info.filename.replace("\\", "/")
    if rule.first:
        return name.removesuffix("/")
    if not info.flag_bits & _UTF8_NAME:
        # Many tools write UTF-8 without the flag. Other bytes are hardly ever valid UTF-8.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return posixpath.normpath("/" + re.sub(r"^[A-Za-z]:", "", name)).lstrip("/")
