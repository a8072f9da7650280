"""File names of any bytes: how they are compared, ordered, hashed and printed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

_CONTROLS = ("Cc", "Zl", "Zp")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key: img2 comes before img10, and upper and lower case come together."""
    parts: list[str | int] = [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name.casefold())]
    return parts, name


def name_bytes(name: str) -> bytes:
    """The name in UTF-8; a name that is not valid UTF-8 gives its bytes on the disk."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which only Windows allows
        return name.encode("utf-8", "surrogatepass")


def valid_text(name: str) -> str:
    r"""The name as text that can be encoded; a byte that is not UTF-8 becomes `\xe9`."""
    return name_bytes(name).decode("utf-8", "backslashreplace")


def readable(name: str) -> str:
    r"""The name for messages: as `valid_text`, on one line, with control characters as `\n`."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _CONTROLS
        else character
        for character in valid_text(name)
    )


def same_letters(name: str) -> str:
    """The name with composed accents (NFC). macOS stores decomposed accents."""
    return unicodedata.normalize("NFC", name)


def some(items: Iterable[str], most: int = 5) -> str:
    """The first few items in natural order, and the number of the others."""
    ordered = sorted(items, key=natural_key)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def parents(name: str) -> Iterator[str]:
    """The folders that contain a file, innermost first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
