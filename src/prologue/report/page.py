"""A report as one self-contained HTML file, and its pictures as PNG files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from PIL import Image

from prologue.errors import ConfigError
from prologue.utils.files import write_text, write_whole

PICTURES = "pictures"


@dataclass(frozen=True)
class Text:
    """A paragraph; `strong` emphasises it."""

    text: str
    strong: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Picture:
    """A picture with its file name without suffix; `wide` pictures scroll on a phone."""

    name: str
    image: Image.Image
    alt: str
    caption: str = ""
    wide: bool = False
    kind: ClassVar[str] = "picture"

    def png(self) -> bytes:
        """The picture as a PNG file."""
        file = io.BytesIO()
        self.image.save(file, format="PNG")
        return file.getvalue()


@dataclass(frozen=True)
class Gallery:
    """Pictures, side by side if the page is wide enough."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Table:
    """Cells of text; numbers are right-aligned in all columns but the first `labels`.

    Text after a line break in a cell is small. `sortable` tables sort by a column when its head is clicked.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    labels: int = 1
    sortable: bool = False
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ConfigError(f"a row of {len(row)} cells in a table of {len(self.head)} columns: {row}")


@dataclass(frozen=True)
class Commands:
    """Command lines to copy, each with a description."""

    lines: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "commands"


@dataclass(frozen=True)
class Points:
    """A list of sentences, with an optional heading."""

    sentences: Sequence[str]
    name: str = ""
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Fold:
    """Blocks that are folded under a title."""

    title: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "fold"


Block = Text | Picture | Gallery | Table | Commands | Points | Fold


@dataclass(frozen=True)
class Section:
    """A heading and its blocks; a section without blocks is not shown."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """The page: a title, a sentence with the result, and sections."""

    title: str
    verdict: str
    sections: Sequence[Section]
    good: bool | None = None
    """Whether the result is good; None shows neither."""
    footer: str = ""
    maker: str = ""
    """The command that made the page, which may replace it."""
    pictures: dict[str, bytes] = field(default_factory=dict, init=False)

    @property
    def sortable(self) -> bool:
        """Whether a table is sortable, which needs the script of the page."""
        return any(isinstance(block, Table) and block.sortable for block in self._all_blocks())

    def write(self, path: Path, beside: bool = True) -> None:
        """Write the page to `path` and, with `beside`, its pictures to `pictures/` beside it; files are replaced."""
        from jinja2 import Environment, PackageLoader

        for picture in self._all_pictures():
            if picture.name in self.pictures:
                raise ConfigError(f"two pictures of the report have the name {picture.name!r}")
            self.pictures[picture.name] = picture.png()
        environment = Environment(
            loader=PackageLoader("prologue.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["uri"] = lambda name: data_uri(self.pictures[name])
        page = environment.get_template("report.html.j2").render(report=self, folder=PICTURES if beside else "")
        for name, content in self.pictures.items() if beside else ():
            write_whole(path.parent / PICTURES / f"{name}.png", content)
        write_text(path, page)

    def _all_blocks(self) -> Iterator[Block]:
        waiting = [block for section in reversed(self.sections) for block in reversed(section.blocks)]
        while waiting:
            block = waiting.pop()
            yield block
            if isinstance(block, Fold):
                waiting.extend(reversed(block.blocks))

    def _all_pictures(self) -> list[Picture]:
        found: list[Picture] = []
        for block in self._all_blocks():
            if isinstance(block, Picture):
                found.append(block)
            elif isinstance(block, Gallery):
                found.extend(block.pictures)
        return found


def data_uri(png: bytes) -> str:
    """The data URI of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
