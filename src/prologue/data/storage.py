"""Files of a folder or a zip, read in place and never written to."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prologue.data.decode import damaged
from prologue.errors import DataError

_LOCAL_HEADER = 30
_LOCAL_MAGIC = b"PK\x03\x04"


class Storage(Protocol):
    """Named files with sizes. Names are relative, with forward slashes; hidden files are left out."""

    sizes: dict[str, int]
    """Size of each file in bytes, by name."""
    stamps: dict[str, int]
    """What changes when a file is written again: its time in a folder, its checksum in a zip."""

    def shown(self, name: str) -> str:
        """The name as the user knows it."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file, from any thread. Raises `DataError` naming it if it cannot be read."""
        ...

    def head(self, name: str, length: int) -> bytes:
        """At most the first `length` bytes, unchecked. Raises `DataError` as `read`."""
        ...


def open_storage(where: str) -> Storage:
    """A folder or zip as storage. Raises `DataError` if there is none at `where`."""
    path = Path(where).expanduser()
    try:
        if path.is_dir():
            return FolderStorage(path)
        if path.is_file():
            return ZipStorage(path)
    except OSError as error:
        raise DataError(f"{where} cannot be opened: {error}") from error
    raise DataError(
        f"there is no folder or zip named {where}: give the path of one, or one of the embedded sets 'shapes', 'digits'"
    )


def _hidden(name: str) -> bool:
    """Files that systems leave about: .DS_Store, .git, macOS's resource forks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class FolderStorage:
    """All files below a folder. Links are followed; a link back to a folder already visited is not."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.sizes: dict[str, int] = {}
        self.stamps: dict[str, int] = {}
        self._walk(root, "", frozenset())

    def _walk(self, folder: Path, prefix: str, parents: frozenset[str]) -> None:
        real = os.path.realpath(folder)
        if real in parents:
            return
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not _hidden(entry.name)]
        except OSError as error:
            raise DataError(f"the folder {folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            if entry.is_dir():
                self._walk(folder / entry.name, f"{prefix}{entry.name}/", parents | {real})
            else:
                try:
                    stat = entry.stat()
                    size, stamp = stat.st_size, stat.st_mtime_ns
                except OSError:  # a dangling link: named as unreadable when it is read
                    size, stamp = 0, 0
                self.sizes[prefix + entry.name], self.stamps[prefix + entry.name] = size, stamp

    def shown(self, name: str) -> str:
        return str(self._root / name)

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, length: int) -> bytes:
        try:
            with (self._root / name).open("rb") as file:
                return file.read(length)
        except OSError as error:
            raise damaged(self.shown(name), error.strerror or str(error)) from error


@dataclass(frozen=True)
class _Member:
    """Where a file lies in its zip."""

    offset: int
    stored: int
    size: int
    crc: int
    method: int
    encrypted: bool


class ZipStorage:
    """All files of a zip. Where everything lies in one top folder, names are relative to that folder.

    Each read opens the zip anew and goes straight to the file, so that threads and forked processes share nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(
                f"{path} is neither a folder nor a readable zip ({error}): give a folder of images or a zip of one"
            ) from error
        kept = {name: info for name, info in infos.items() if not _hidden(name)}
        tops = {name.partition("/")[0] for name in kept}
        wrapped = len(tops) == 1 and all("/" in name for name in kept)
        self._prefix = tops.pop() + "/" if wrapped else ""
        self._members = {
            name.removeprefix(self._prefix): _Member(
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                bool(info.flag_bits & 1),
            )
            for name, info in kept.items()
        }
        self.sizes = {name: member.size for name, member in self._members.items()}
        self.stamps = {name: member.crc for name, member in self._members.items()}

    def shown(self, name: str) -> str:
        return f"{self._path}/{self._prefix}{name}"

    def read(self, name: str) -> bytes:
        member = self._members[name]
        data = self.head(name, member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise damaged(self.shown(name), "its checksum in the zip is wrong")
        return data

    def head(self, name: str, length: int) -> bytes:
        member = self._members[name]
        if member.encrypted or member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "encrypted" if member.encrypted else f"compressed by method {member.method}"
            raise DataError(f"{self.shown(name)} is {how}: pack the zip again, plainly (deflate or store)")
        try:
            return self._expand(member, min(length, member.size))
        except (OSError, zlib.error, struct.error) as error:
            raise damaged(self.shown(name), str(error)) from error

    def _expand(self, member: _Member, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(member.offset)
            header = file.read(_LOCAL_HEADER)
            if header[:4] != _LOCAL_MAGIC:
                raise OSError("the zip's directory points to no file")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            file.seek(name_length + extra_length, os.SEEK_CUR)
            if member.method == zipfile.ZIP_STORED:
                return file.read(length)
            # The beginning of a file needs no more input than this; a little less output would do no harm.
            raw = file.read(member.stored if length == member.size else min(member.stored, length))
        # The output is bounded by what the zip's directory declares, whatever the stream would grow to.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, length) if length else b""
