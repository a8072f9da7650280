"""The factors of one scene of `shapes`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """The factors of one scene. Angles in degrees, hues of OKLCH; x to the right, y downwards."""

    kind: str
    colour: str
    hue: float
    """Hue of the shape: its colour's, with a little jitter."""
    background_hue: float
    """Opposite to the shape's hue, with a little jitter."""
    night: bool
    """Bright shape on a dark ground; else a deep one, with an outline, on a light ground. Warm colours prefer night."""
    background: str
    light: float
    """Where the light comes from: -60 (left) … 0 (above) … 60 (right)."""
    x: float
    """Place of the shape in the room it has: -1 at the left border … 1 at the right; it evades the light."""
    y: float
    size: float
    """Diameter over the picture's short side."""
    rotation: float
    """Clockwise; the shape leans to the side on which it stands."""
    texture: str
    periods: float
    """Periods of the texture across the shape."""
    phase: float
    """Shift of the texture, in periods."""
