"""The embedded `shapes`: endless procedural scenes whose factors are known and depend on each other.

A scene is one large shape under a light. What makes it hard without global context: the light's side decides which
side of the background is bright, where the shadow falls, which side of the shape shines, and on which side the
shape stands (opposite); its place decides its rotation, the rotation that of its texture; its colour decides the
background's hue, and mostly whether it is night. The drawing is in `prologue.data.drawing`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from prologue.config import DataConfig
from prologue.data.cache import PixelCache
from prologue.data.colour import grainy
from prologue.data.drawing import draw
from prologue.data.options import ShapesOptions
from prologue.data.rendered import RenderedSet
from prologue.data.scene import Scene
from prologue.data.source import Data, fingerprint, seen_options
from prologue.utils.rng import numpy_stream

Split = Literal["train", "validation"]

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
COLOURS = ("red", "amber", "green", "teal", "blue", "magenta")
TEXTURES = ("plain", "stripes", "checks", "dots")
BACKGROUNDS = ("gradient", "glow", "horizon")

VERSION = 1
"""Changes whenever a scene of the same seed would look different."""
_HUES = {"red": 25.0, "amber": 75.0, "green": 145.0, "teal": 200.0, "blue": 262.0, "magenta": 335.0}
_WARM = ("red", "amber", "magenta")
_LEAN = 25.0
"""Largest rotation to either side, in degrees."""


def scene(split: Split, index: int, seed: int = 0) -> Scene:
    """Scene `index` of an endless split; classes take turns. The splits draw from different streams."""
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


def render(scene: Scene, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
    """Draw a scene at any size; a wide or tall picture shows more background."""
    return draw(scene, height, width)


class ShapesSet(RenderedSet):
    """One split of `shapes` at one size: `count` scenes from the stream of (seed, split)."""

    def __init__(
        self,
        split: Split,
        count: int,
        size: tuple[int, int],
        config: DataConfig,
        seed: int = 0,
        options: ShapesOptions | None = None,
    ) -> None:
        labels = np.arange(count, dtype=np.int64) % len(CLASS_NAMES)
        super().__init__(labels, size, config, PixelCache(config.cache_mb))
        self.split, self.options, self._seed = split, options or ShapesOptions(), seed
        self._cells = tuple(max(1, round(side / self.options.cell)) for side in size)

    def scene(self, index: int) -> Scene:
        return scene(self.split, index, self._seed)

    def render(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
        picture = render(self.scene(index), height, width)
        grain = self.options.grain
        if grain == 0:
            return picture
        turns, shifts = numpy_stream(self._seed, "shapes", "grain", self.split, index).random((2, *self._cells)) * 2 - 1
        return grainy(picture, turns * (grain * np.pi), shifts * (grain / 2))

    def factors(self, index: int) -> dict[str, Any]:
        """The factors of image `index`, by name."""
        return asdict(self.scene(index)) | ({"grain": self.options.grain} if self.options.grain else {})


def open_shapes(
    config: DataConfig, image_size: tuple[int, int], seed: int = 0, options: ShapesOptions | None = None
) -> Data:
    """The embedded scenes as a data source: `data.shapes_images` to train, `data.shapes_validation` to validate."""
    # Without grain the cells are nowhere to be seen, and the images are those of `shapes` alone.
    grain = {"grain": asdict(options)} if options is not None and options.grain else {}
    return Data(
        train=ShapesSet("train", config.shapes_images, image_size, config, seed, options),
        validation=ShapesSet("validation", config.shapes_validation, image_size, config, seed, options),
        class_names=CLASS_NAMES,
        fingerprint=fingerprint(
            source=f"shapes-{VERSION}",
            seed=seed,
            counts=[config.shapes_images, config.shapes_validation],
            **grain,
            **seen_options(config, image_size),
        ),
    )
