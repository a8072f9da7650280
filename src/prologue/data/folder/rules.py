"""The numbered rules that decide which files are images, and their labels and splits. A run keeps its first rule."""

from __future__ import annotations

from dataclasses import dataclass

from prologue.config import FILE_RULE, DataConfig
from prologue.data.decode import READS_AVIF

_SUFFIXES_1 = (".png", ".jpg", ".jpeg", ".webp")
_SUFFIXES_2 = (*_SUFFIXES_1, ".jfif", ".jpe", ".bmp", ".tif", ".tiff", ".gif", *((".avif",) if READS_AVIF else ()))
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler"),
        *("system volume information", "lost+found", "found.000", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("__pycache__", "node_modules", "cvs"),
    }
)
"""Files and folders that systems and tools create, in lower case."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder names in lower case, and the split that each means."""


@dataclass(frozen=True)
class FileRule:
    """One rule."""

    number: int
    suffixes: tuple[str, ...]
    """Suffixes of image files, in lower case."""
    formats: str
    """The formats in words."""

    @property
    def first(self) -> bool:
        """Whether this is the rule of the first versions. Runs of those versions keep it."""
        return self.number == 1

    def is_image(self, name: str) -> bool:
        return name.lower().endswith(self.suffixes)

    def is_system(self, part: str) -> bool:
        """Whether a file or folder of this name is hidden or belongs to a system."""
        if self.first:
            return part.startswith(".") or part == "__MACOSX"
        return part.startswith(".") or part.lower() in _SYSTEM_NAMES

    def split_of(self, folder: str) -> str | None:
        """The split that a folder's name means, if any."""
        return None if self.first else SPLIT_NAMES.get(folder.lower())


_RULES = {
    1: FileRule(1, _SUFFIXES_1, "PNG, JPEG or WebP"),
    2: FileRule(2, _SUFFIXES_2, "PNG, JPEG, WebP, BMP, TIFF, GIF" + (" or AVIF" if READS_AVIF else "")),
}


def rule_of(config: DataConfig) -> FileRule:
    """The rule of number `data.file_rule`, or the newest."""
    return _RULES[FILE_RULE if config.file_rule is None else config.file_rule]
