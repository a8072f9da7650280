"""The one door to images: from what `--data` names to its splits."""

from __future__ import annotations

from pathlib import Path

from prologue.config import DataConfig
from prologue.data.source import Data

EMBEDDED = ("shapes", "digits")
"""Image sets that come with the package or an extra, which are named and lie nowhere."""


def place_of(where: str) -> str:
    """Where the images lie, whatever the working directory: the name of an embedded set, else an absolute path."""
    return where if where in EMBEDDED else str(Path(where).absolute())


def open_data(where: str, config: DataConfig, image_size: tuple[int, int]) -> Data:
    """Open `shapes`, `digits`, a folder or a zip, for images of `image_size` (rows, columns).

    Raises `DataError` for what is missing, empty, damaged or contradictory, naming it, and `MissingExtraError`
    for `digits` without its extra. A folder called shapes is reached as ./shapes.
    """
    if where == "shapes":
        from prologue.data.shapes import open_shapes

        return open_shapes(config, image_size)
    if where == "digits":
        from prologue.data.digits import open_digits

        return open_digits(config, image_size)
    from prologue.data.folder import open_folder

    return open_folder(where, config, image_size)
