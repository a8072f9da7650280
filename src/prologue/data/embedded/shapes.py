"""`shapes`: any number of procedural scenes whose factors are known and depend on each other.

A scene is one large shape under a light. The side of the light decides which side of the background is bright, where
the shadow falls, which side of the shape shines, and on which side the shape stands (the opposite one). The place
decides the rotation, and the rotation that of the texture. The colour decides the hue of the background and, mostly,
whether it is night. A scene is therefore hard to predict without global context.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from prologue.config import DataConfig
from prologue.data.embedded.colour import grainy
from prologue.data.embedded.drawing import Scene, draw
from prologue.data.source import Data, fingerprint, require_between, seen_options
from prologue.data.views import PixelCache, RenderedSet
from prologue.utils.rng import numpy_stream

Split = Literal["train", "validation"]

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
COLOURS = ("red", "amber", "green", "teal", "blue", "magenta")
TEXTURES = ("plain", "stripes", "checks", "dots")
BACKGROUNDS = ("gradient", "glow", "horizon")

VERSION = 1
"""Version of the drawing. It must change whenever a scene of the same seed looks different."""
_HUES = {"red": 25.0, "amber": 75.0, "green": 145.0, "teal": 200.0, "blue": 262.0, "magenta": 335.0}
_WARM = ("red", "amber", "magenta")
_LEAN = 25.0
"""Largest rotation to either side, in degrees."""


def scene(split: Split, index: int, seed: int = 0) -> Scene:
    """Scene `index` of an endless split; the classes take turns. The splits draw from different streams."""
    draws: list[float] = numpy_stream(seed, "shapes", split, index).random(14).tolist()
    chance = iter(draws)

    def spread() -> float:
        return 2 * next(chance) - 1

    colour = COLOURS[int(next(chance) * len(COLOURS))]
    hue = _HUES[colour] + 6 * spread()
    side = spread()
    x = max(-1.0, min(1.0, -0.75 * side + 0.35 * spread()))
    return Scene(
        kind=CLASS_NAMES[index % len(CLASS_NAMES)],
        colour=colour,
        hue=hue % 360,
        background_hue=(hue + 180 + 15 * spread()) % 360,
        night=(next(chance) < 0.85) == (colour in _WARM),
        background=BACKGROUNDS[int(next(chance) * len(BACKGROUNDS))],
        light=60 * side,
        x=x,
        y=spread(),
        size=0.58 + 0.22 * next(chance),
        rotation=_LEAN * (0.75 * x + 0.25 * spread()),
        texture=TEXTURES[int(next(chance) * len(TEXTURES))],
        periods=2.2 + 1.2 * next(chance),
        phase=next(chance),
    )


@dataclass(frozen=True)
class Shapes:
    """The source `shapes`: `data.shapes_images` scenes to train and `data.shapes_validation` to validate."""

    grain: float = 0.0
    """Strength of the noise: each cell's hue turns by up to ±180° · grain, and its brightness changes by up to
    ±0.5 · grain (of 1). 0 draws the scenes without noise."""
    cell: int = 4
    """Side of the noise's cells, in pixels."""

    def __post_init__(self) -> None:
        require_between("grain", self.grain, 0, 1)
        require_between("cell", self.cell, 1, 64)

    def open(self, config: DataConfig, image_size: tuple[int, int], seed: int = 0) -> Data:
        # Without grain the cells are invisible, so the fingerprint equals that of `shapes` without options.
        grain = {"grain": asdict(self)} if self.grain else {}
        return Data(
            train=ShapesSet("train", config.shapes_images, image_size, config, seed, self),
            validation=ShapesSet("validation", config.shapes_validation, image_size, config, seed, self),
            class_names=CLASS_NAMES,
            fingerprint=fingerprint(
                source=f"shapes-{VERSION}",
                seed=seed,
                counts=[config.shapes_images, config.shapes_validation],
                **grain,
                **seen_options(config, image_size),
            ),
        )


class ShapesSet(RenderedSet):
    """One split of `shapes`: `count` scenes from the stream of (seed, split)."""

    def __init__(
        self,
        split: Split,
        count: int,
        size: tuple[int, int],
        config: DataConfig,
        seed: int = 0,
        options: Shapes | None = None,
    ) -> None:
        labels = np.arange(count, dtype=np.int64) % len(CLASS_NAMES)
        super().__init__(labels, size, config, PixelCache(config.cache_mb))
        self.split, self.options, self._seed = split, options or Shapes(), seed
        self._cells = tuple(max(1, round(side / self.options.cell)) for side in size)

    def scene(self, index: int) -> Scene:
        return scene(self.split, index, self._seed)

    def render(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
        picture = draw(self.scene(index), height, width)
        grain = self.options.grain
        if grain == 0:
            return picture
        turns, shifts = numpy_stream(self._seed, "shapes", "grain", self.split, index).random((2, *self._cells)) * 2 - 1
        return grainy(picture, turns * (grain * np.pi), shifts * (grain / 2))

    def factors(self, index: int) -> dict[str, Any]:
        return asdict(self.scene(index)) | ({"grain": self.options.grain} if self.options.grain else {})
