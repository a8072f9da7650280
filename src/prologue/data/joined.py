"""Image sets one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from prologue.data.source import ImageSet


class JoinedSet:
    """An `ImageSet` of the images of several, of one size and with as many views, in their order."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self.sets = tuple(sets)
        self.size, self.views = sets[0].size, sets[0].views
        self.labels: Int64[np.ndarray, " n"] = np.concatenate([each.labels for each in sets])
        self._starts = np.cumsum([0, *(len(each) for each in sets)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def center_view(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        images, inside = self._find(index)
        return images.center_view(inside)

    def train_view(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "3 H W"]:
        images, inside = self._find(index)
        return images.train_view(inside, rng)

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        images, inside = self._find(index)
        return images.token_views(inside)

    def _find(self, index: int) -> tuple[ImageSet, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[which], index - int(self._starts[which])
