"""The one door to images: from what `--data` names to its splits."""

from __future__ import annotations

from pathlib import Path

from prologue.config import DataConfig
from prologue.data.options import NoOptions, PlatesOptions, ShapesOptions, embedded_name
from prologue.data.source import Data


def place_of(where: str) -> str:
    """Where the images lie, whatever the working directory: the name of an embedded set and its options, else an
    absolute path."""
    return where if embedded_name(where) is not None else str(Path(where).absolute())


def open_data(where: str, config: DataConfig, image_size: tuple[int, int]) -> Data:
    """Open `shapes`, `digits` or `plates` with their options, a folder or a zip, for images of `image_size` (rows,
    columns).

    Raises `DataError` for what is missing, empty, damaged or contradictory, naming it, and `MissingExtraError`
    for `digits` without its extra. A folder called shapes is reached as ./shapes.
    """
    name = embedded_name(where)
    if name == "shapes":
        from prologue.data.shapes import open_shapes

        return open_shapes(config, image_size, options=ShapesOptions.parse(where))
    if name == "digits":
        from prologue.data.digits import open_digits

        NoOptions.parse(where)
        return open_digits(config, image_size)
    if name == "plates":
        from prologue.data.plates import open_plates

        return open_plates(config, image_size, PlatesOptions.parse(where))
    from prologue.data.folder import open_folder

    return open_folder(where, config, image_size)
