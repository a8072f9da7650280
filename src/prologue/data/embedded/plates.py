"""`plates`: figures that differ from the ground by hue alone, as in plates that test colour vision.

A plate is a grid of cells of one colour each. Figure and ground have one hue each, every cell has a random lightness,
and a fraction of the cells (`noise`) has a random hue. A single cell gives almost no information about the figure.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from prologue.config import DataConfig
from prologue.data.embedded.colour import enlarge, oklch
from prologue.data.embedded.digits import DIGITS, held_out, load_scans
from prologue.data.embedded.drawing import inside_kind
from prologue.data.embedded.shapes import CLASS_NAMES as KINDS
from prologue.data.embedded.shapes import Split
from prologue.data.source import Data, fingerprint, require_between, seen_options
from prologue.data.views import PixelCache, RenderedSet
from prologue.errors import DataError
from prologue.utils.rng import numpy_stream

VERSION = 1
"""Version of the drawing. It must change whenever a plate of the same seed looks different."""
HUES = {"red": 20.0, "green": 110.0, "teal": 200.0, "violet": 290.0}
_LIGHTNESS = (0.45, 0.85)
_CHROMA = 0.1
_LEAST_CELLS = 5
_HELD_OUT = 0.2
"""Fraction of the scans of each digit that only validation plates show."""
_INK = 110
"""Pixels of a scan above this value (of 255) are ink."""


@dataclass(frozen=True)
class Plate:
    """The factors of one plate."""

    figure: str
    """The class: a digit or a kind of shape."""
    scan: int
    """Number of the scan among those of this digit and split; 0 for shapes."""
    x: float
    """Position of the figure within its range: -1 at the left border … 1 at the right."""
    y: float
    """-1 at the upper border … 1 at the lower."""
    size: float
    """Side of the figure's square, relative to the short side of the picture."""
    figure_hue: str
    ground_hue: str
    noise: float
    """Fraction of the cells with a random hue, as set by the option."""


def class_names(figures: str) -> tuple[str, ...]:
    """The classes of plates with these figures."""
    return DIGITS if figures == "digits" else KINDS


@lru_cache(maxsize=2)
def _scans(split: Split) -> tuple[UInt8[np.ndarray, "n 8 8"], ...]:
    """The scans of each digit in a split. Raises `MissingExtraError` without scikit-learn."""
    scans, labels = load_scans("--data plates with figures=digits")
    chosen = held_out(labels, _HELD_OUT) == (split == "validation")
    return tuple(scans[chosen & (labels == digit)] for digit in range(10))


@dataclass(frozen=True)
class Plates:
    """The source `plates`: `data.shapes_images` plates to train and `data.shapes_validation` to validate."""

    figures: Literal["digits", "kinds"] = "digits"
    """Scans of handwritten digits (needs the extra [digits]), or the eight kinds of `shapes`."""
    noise: float = 0.1
    """Fraction of the cells with a random hue."""
    cell: int = 4
    """Side of the cells, in pixels."""

    def __post_init__(self) -> None:
        require_between("noise", self.noise, 0, 1)
        require_between("cell", self.cell, 1, 64)

    def open(self, config: DataConfig, image_size: tuple[int, int], seed: int = 0) -> Data:
        """Raises `MissingExtraError` for digits without scikit-learn, and `DataError` for images of too few cells."""
        train = PlatesSet("train", config.shapes_images, image_size, config, self, seed)
        return Data(
            train=train,
            validation=PlatesSet("validation", config.shapes_validation, image_size, config, self, seed),
            class_names=train.names,
            fingerprint=fingerprint(
                source=f"plates-{VERSION}",
                seed=seed,
                counts=[config.shapes_images, config.shapes_validation],
                options=asdict(self),
                scans=[hashlib.sha256(each.tobytes()).hexdigest() for each in train.scans],
                **{**seen_options(config, image_size), "flip": False},
            ),
        )


class PlatesSet(RenderedSet):
    """One split of `plates`: `count` plates from the stream of (seed, split). They are never mirrored."""

    def __init__(
        self, split: Split, count: int, size: tuple[int, int], config: DataConfig, options: Plates, seed: int = 0
    ) -> None:
        self.names = class_names(options.figures)
        labels = np.arange(count, dtype=np.int64) % len(self.names)
        super().__init__(labels, size, dataclasses.replace(config, flip=False), PixelCache(config.cache_mb))
        self.split, self.options, self._seed = split, options, seed
        self.grid = max(1, round(size[0] / options.cell)), max(1, round(size[1] / options.cell))
        if min(self.grid) < _LEAST_CELLS:
            raise DataError(
                f"images of {size[0]} × {size[1]} px have {self.grid[0]} × {self.grid[1]} cells of {options.cell} px, "
                f"and a figure needs {_LEAST_CELLS}: choose larger images, or smaller cells with --data plates:cell=N"
            )
        self.scans = _scans(split) if options.figures == "digits" else ()

    def plate(self, index: int) -> Plate:
        """The factors of plate `index`."""
        return self._drawn(index)[0]

    def _drawn(self, index: int) -> tuple[Plate, np.random.Generator]:
        """The factors, and the random stream from which the cells are then drawn."""
        rng = numpy_stream(self._seed, "plates", self.options.figures, self.split, index)
        draws: list[float] = rng.random(6).tolist()
        down, right, size, scan, hue, step = draws
        label = index % len(self.names)
        hues = list(HUES)
        figure = int(hue * len(hues))
        ground = (figure + 1 + int(step * (len(hues) - 1))) % len(hues)
        short = min(self.grid)
        least = max(_LEAST_CELLS, -(-short * 4 // 5))
        side = least + int(size * (short + 1 - least))
        room = self.grid[0] - side, self.grid[1] - side
        row, column = int(down * (room[0] + 1)), int(right * (room[1] + 1))
        plate = Plate(
            figure=self.names[label],
            scan=int(scan * len(self.scans[label])) if self.scans else 0,
            x=2 * column / room[1] - 1 if room[1] else 0.0,
            y=2 * row / room[0] - 1 if room[0] else 0.0,
            size=side / short,
            figure_hue=hues[figure],
            ground_hue=hues[ground],
            noise=self.options.noise,
        )
        return plate, rng

    def _figure(self, plate: Plate) -> Bool[np.ndarray, "rows columns"]:
        """True for the cells that show the figure."""
        side = round(plate.size * min(self.grid))
        if self.scans:
            scan = Image.fromarray(self.scans[self.names.index(plate.figure)][plate.scan])
            mask = np.asarray(scan.resize((side, side), resample=Image.Resampling.BILINEAR)) > _INK
        else:
            mask = inside_kind(plate.figure, side)
        cells = np.zeros(self.grid, dtype=bool)
        row = round((plate.y + 1) / 2 * (self.grid[0] - side))
        column = round((plate.x + 1) / 2 * (self.grid[1] - side))
        cells[row : row + side, column : column + side] = mask
        return cells

    def render(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
        """Draw plate `index` with the cells of the set's own size, then enlarge it."""
        plate, rng = self._drawn(index)
        random, chance, lightness = rng.random((3, *self.grid))
        angles = np.array(list(HUES.values()))
        hue = np.where(self._figure(plate), HUES[plate.figure_hue], HUES[plate.ground_hue])
        hue = np.where(chance < plate.noise, angles[(random * len(angles)).astype(np.int64)], hue)
        low, high = _LIGHTNESS
        colours = oklch(low + (high - low) * lightness, _CHROMA, hue)
        picture: UInt8[np.ndarray, "3 height width"] = enlarge((colours * 255 + 0.5).astype(np.uint8), height, width)
        return picture

    def factors(self, index: int) -> dict[str, Any]:
        return asdict(self.plate(index))
