"""Chooses held-out images by a function of each image's name, so that added images do not change the split of
others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from prologue.data.names import name_bytes


def place(name: str) -> float:
    """A hash of the name in [0, 1). Below the validation fraction the image is held out."""
    return int.from_bytes(hashlib.sha256(name_bytes(name)).digest()[:8], "big") / 2**64


def hold_out(names: Sequence[str], labels: Int64[np.ndarray, " n"], fraction: float) -> Bool[np.ndarray, " n"]:
    """True for held-out images: those whose `place` is below `fraction`.

    Every class of two images or more keeps at least one in each split (for `fraction` > 0); a class of one image is
    used for training.
    """
    places = np.array([place(name) for name in names])
    held = places < fraction
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) == 1 or fraction == 0:
            held[members] = False
        elif not held[members].any():
            held[members[places[members].argmin()]] = True
        elif held[members].all():
            held[members[places[members].argmax()]] = False
    return held
