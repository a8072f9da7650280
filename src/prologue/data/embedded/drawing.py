"""The factors of a scene of `shapes`, and its drawing: signed distances, analytic anti-aliasing, OKLCH colours.

The unit of length is half the short side of the picture, the origin is its middle, and y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from prologue.data.embedded.colour import oklch

Field = NDArray[np.float32]
"""One value per pixel, (H, W)."""
Colour = NDArray[np.float32]
"""sRGB in 0…1: (3, 1, 1) for all pixels, or (3, H, W)."""

_F = np.float32
# numpy's own annotations lose the type.
_abs: Callable[[Field], Field] = np.abs
_sqrt: Callable[[Field], Field] = np.sqrt
_sin: Callable[[Field], Field] = np.sin
_cos: Callable[[Field], Field] = np.cos
_min: Callable[[Field, Field | np.float32], Field] = np.minimum
_max: Callable[[Field, Field | np.float32], Field] = np.maximum


@dataclass(frozen=True)
class Scene:
    """The factors of one scene. Angles in degrees, hues of OKLCH; x to the right, y downwards."""

    kind: str
    colour: str
    hue: float
    """Hue of the shape: the hue of its colour, with a little jitter."""
    background_hue: float
    """Opposite to the hue of the shape, with a little jitter."""
    night: bool
    """True: a bright shape on a dark ground. False: a dark shape with an outline on a light ground. True is more likely
    for warm colours."""
    background: str
    light: float
    """Direction of the light: -60 (left) … 0 (above) … 60 (right)."""
    x: float
    """Position of the shape within its range: -1 at the left border … 1 at the right. It is on the side away from the
    light."""
    y: float
    size: float
    """Diameter, relative to the short side of the picture."""
    rotation: float
    """Clockwise; the shape leans to the side on which it stands."""
    texture: str
    periods: float
    """Periods of the texture across the shape."""
    phase: float
    """Shift of the texture, in periods."""


def _clip(values: Field) -> Field:
    """Clip to 0…1."""
    return _min(_max(values, _F(0)), _F(1))


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> tuple[Field, Field]:
    """x and y of the pixel centers."""
    half = min(height, width) / 2
    y, x = np.mgrid[0:height, 0:width].astype(_F)
    return (x + _F(0.5 - width / 2)) / _F(half), (y + _F(0.5 - height / 2)) / _F(half)


# Signed distances (negative inside) to shapes of circumradius about 1. Only the border and one pixel around it matter,
# so distances beyond corners need not be exact.


def _disc(x: Field, y: Field, radius: float = 1.0) -> Field:
    return _sqrt(x * x + y * y) - _F(radius)


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return _max(_abs(x) - _F(half_width), _abs(y) - _F(half_height))


def _triangle(x: Field, y: Field) -> Field:
    y = y - _F(0.15)
    return _max(_abs(x) * _F(math.cos(math.pi / 6)) - y * _F(0.5), y) - _F(0.55)


def _star(x: Field, y: Field) -> Field:
    """Five points: the plane is folded into a tenth, in which the border is one line from a tip to an inner corner."""
    tenth = math.pi / 5
    angle = np.arctan2(x, -y)
    folded = _abs(angle - _F(2 * tenth) * np.round(angle * _F(1 / (2 * tenth))))
    radius = _sqrt(x * x + y * y)
    tip, inner = 1.05, 0.5
    corner = (inner * math.cos(tenth), inner * math.sin(tenth))
    length = math.hypot(tip - corner[0], corner[1])
    along, across = corner[1] / length, (tip - corner[0]) / length
    return (radius * _cos(folded) - _F(tip)) * _F(along) + radius * _sin(folded) * _F(across)


def _heart(x: Field, y: Field) -> Field:
    """A square that stands on a corner, and a disc on each of its upper sides."""
    side = 0.56
    x, y = _abs(x), y - _F(0.1)
    right, up = (x - y) * _F(math.sqrt(0.5)), (x + y) * _F(math.sqrt(0.5))
    return _min(_max(_abs(right), _abs(up)) - _F(side), _disc(right - _F(side), up, side))


_DISTANCES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: _disc(x, y, 0.9),
    "square": lambda x, y: _box(x, y, 0.77, 0.77),
    "triangle": _triangle,
    "star": _star,
    "ring": lambda x, y: _abs(_disc(x, y, 0.7)) - _F(0.24),
    "cross": lambda x, y: _min(_box(x, y, 0.3, 0.95), _box(x, y, 0.95, 0.3)),
    "heart": _heart,
    "crescent": lambda x, y: _max(_disc(x, y, 0.95), -_disc(x - _F(0.45), y + _F(0.1), 0.72)),
}


def inside_kind(kind: str, side: int) -> NDArray[np.bool_]:
    """A mask of side × side cells: true if the center of the cell lies in a shape of this kind that fills the
    square."""
    x, y = _grid(side, side)
    return np.asarray(_DISTANCES[kind](x, y) < 0)


def _texture(x: Field, y: Field, scene: Scene) -> Field | None:
    """The texture (0…1) in the shape's own coordinates, or None for plain. Soft edges give the same picture at every
    size."""
    if scene.texture == "plain":
        return None
    rate, shift = math.pi * scene.periods, 2 * math.pi * scene.phase
    if scene.texture == "stripes":
        wave = _sin(y * _F(rate) + _F(shift))
    elif scene.texture == "checks":
        wave = _sin(x * _F(rate) + _F(shift)) * _sin(y * _F(rate) + _F(shift)) * _F(1.5)
    else:
        wave = _cos(x * _F(rate) + _F(shift)) + _cos(y * _F(rate) + _F(shift)) - _F(0.6)
    return _clip(_F(0.5) + wave * _F(1.2))


def _colours(hue: float, *tones: tuple[float, float]) -> list[Colour]:
    """Colours of one OKLCH hue, given by (lightness, chroma)."""
    lightness, chroma = np.array(tones).T
    return list(oklch(lightness, chroma, np.array(hue)).astype(_F).T.reshape(len(tones), 3, 1, 1))


def _ground(scene: Scene, x: Field, y: Field, toward: tuple[float, float]) -> Colour:
    """The background: a dark and a bright tone of one hue, mixed by the distance from the light."""
    tones = ((0.20, 0.05), (0.42, 0.09)) if scene.night else ((0.80, 0.07), (0.97, 0.03))
    dark, bright = _colours(scene.background_hue, *tones)
    if scene.background == "glow":
        away = _sqrt((x - _F(1.1 * toward[0])) ** 2 + (y - _F(1.1 * toward[1])) ** 2)
        near = _clip(_F(1.1) - away * _F(0.5))
    else:
        near = _F(0.5) + (x * _F(toward[0]) + y * _F(toward[1])) * _F(0.4)
        if scene.background == "horizon":
            near = near * _F(0.45) + _clip(_F(0.5) - (y - _F(0.25)) * _F(5)) * _F(0.55)
        near = _clip(near)
    return dark + (bright - dark) * near


def draw(scene: Scene, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
    """Draw a scene as RGB uint8 at any size; a wide or tall picture shows more background."""
    x, y = _grid(height, width)
    half = min(height, width) / 2
    radius = scene.size
    angle = math.radians(scene.light)
    toward = (math.sin(angle), -math.cos(angle))
    room = 1 - 0.9 * radius
    center = (scene.x * (width / 2 / half - 1 + room), scene.y * (height / 2 / half - 1 + room))

    turn = math.radians(scene.rotation)
    cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
    dx, dy = x - _F(center[0]), y - _F(center[1])
    u, v = dx * _F(cos) + dy * _F(sin), dy * _F(cos) - dx * _F(sin)
    distance = _DISTANCES[scene.kind]
    border = distance(u, v)
    inside = _clip(_F(0.5) - border * _F(radius * half))

    # The shadow is the same shape, farther from the light and with a soft border.
    away = (0.16 * toward[0], 0.16 * toward[1])
    shadow = distance(u + _F(away[0] * cos + away[1] * sin), v + _F(away[1] * cos - away[0] * sin))
    shade = _clip(_F(0.5) - shadow * _F(3.5)) * _F(0.45 if scene.night else 0.28)

    picture = _ground(scene, x, y, toward) * (_F(1) - shade)
    picture += inside * (_fill(scene, u, v, border, dx, dy, toward) - picture)
    return (picture * _F(255) + _F(0.5)).astype(np.uint8)


def _fill(scene: Scene, u: Field, v: Field, border: Field, dx: Field, dy: Field, toward: tuple[float, float]) -> Colour:
    """The colour of the shape at every pixel: texture, shine toward the light, outline."""
    lightness, chroma = (0.74, 0.15) if scene.night else (0.60, 0.16)
    colour, light = _colours(scene.hue, (lightness, chroma), (lightness + 0.13, chroma - 0.03))
    texture = _texture(u, v, scene)
    fill = colour if texture is None else colour + (light - colour) * texture
    shine = _F(1) + (dx * _F(toward[0]) + dy * _F(toward[1])) * _F(0.22 / scene.size)
    if not scene.night:
        shine = shine * (_F(1) - _clip(_F(0.5) + (border + _F(0.12)) * _F(12)) * _F(0.45))
    return _clip(fill * shine)
