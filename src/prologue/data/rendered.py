"""The common part of image sets that draw their pictures at any size instead of reading files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from prologue.config import DataConfig
from prologue.data import crops
from prologue.data.cache import PixelCache


class RenderedSet(ABC):
    """An `ImageSet` whose center view is rendered at exact size; other crops are cut from larger renderings."""

    def __init__(
        self,
        labels: Int64[np.ndarray, " n"],
        size: tuple[int, int],
        config: DataConfig,
        cache: PixelCache,
    ) -> None:
        self.labels = labels
        self.size = size
        self.views = crops.token_view_count(config.token_views == "ten-crop", config.flip)
        self._config = config
        self._cache = cache

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def render(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
        """Picture `index` at any size."""

    def factors(self, index: int) -> dict[str, Any]:
        """The known factors of picture `index`, by name; none where nothing is known."""
        return {}

    def center_view(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        """The whole picture at the set's size."""
        return self._cache.get(index, lambda: self.render(index, *self.size))

    def train_view(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "3 H W"]:
        """A training view: whole or zoomed and cut (`data.crop`), mirrored by chance (`data.flip`)."""
        if self._config.crop == "random":
            picture = crops.cut_random(self.render(index, *crops.random_size(self.size, rng)), self.size, rng)
        else:
            picture = self.center_view(index)
        return crops.flip_maybe(picture, rng) if self._config.flip else picture

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        """The views that the token store holds, in a fixed order."""
        if self._config.token_views == "ten-crop":
            views = crops.five_windows(self.render(index, *crops.ten_crop_size(self.size)), self.size)
        else:
            views = self.center_view(index)[None]
        return crops.with_flips(views) if self._config.flip else views
