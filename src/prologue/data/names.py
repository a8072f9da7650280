"""File names as they are compared, ordered, hashed and shown, whatever bytes they are made of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

_CONTROLS = ("Cc", "Zl", "Zp")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts img2 before img10, and upper and lower case together."""
    parts: list[str | int] = [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name.casefold())]
    return parts, name


def name_bytes(name: str) -> bytes:
    """UTF-8, and of a name that is not valid UTF-8 the bytes that it has on the disk."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which only Windows allows
        return name.encode("utf-8", "surrogatepass")


def valid_text(name: str) -> str:
    r"""The name as text that can be encoded: bytes that are not UTF-8 as `\xe9`."""
    return name_bytes(name).decode("utf-8", "backslashreplace")


def readable(name: str) -> str:
    r"""The name as text on one line, for messages: as `valid_text`, and control characters as `\n`."""
    return "".join(_shown(character) for character in valid_text(name))


def _shown(character: str) -> str:
    escaped = unicodedata.category(character) in _CONTROLS
    return character.encode("unicode_escape").decode("ascii") if escaped else character


def same_letters(name: str) -> str:
    """One spelling of a name whose accents may be letters of their own (macOS stores such names)."""
    return unicodedata.normalize("NFC", name)


def some(items: Iterable[str], most: int = 5) -> str:
    """The items in natural order, of many the first few."""
    ordered = sorted(items, key=natural_key)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def parents(name: str) -> Iterator[str]:
    """The folders that a file lies in, from the innermost."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
