"""The views of an image: the center crop, random training crops, and the fixed crops of the token store.

`CroppedSet` cuts views out of whole pictures. `RenderedSet` draws each view at its own size.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from prologue.config import DataConfig
from prologue.data import crops
from prologue.data.crops import Pixels

Key = TypeVar("Key", bound=int | str)
Picture = UInt8[np.ndarray, "_ _ _"]


class PixelCache:
    """Keeps the first pictures until `megabytes` MiB are full. Kept pictures are read-only.

    Pictures are never replaced: an epoch visits each picture once, so the least recently used one is needed next.
    """

    def __init__(self, megabytes: int) -> None:
        self._room = megabytes << 20
        self._pictures: dict[int | str, Picture] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, key: int | str, make: Callable[[], Picture]) -> Picture:
        """Return the picture of this key; call `make` if it is not kept."""
        kept = self._pictures.get(key)
        return self.put(key, make()) if kept is None else kept

    def put(self, key: int | str, picture: Picture) -> Picture:
        """Keep `picture` if there is room, and return it."""
        with self._lock:
            if key not in self._pictures and picture.nbytes <= self._room:
                picture.flags.writeable = False
                self._pictures[key] = picture
                self._room -= picture.nbytes
        return picture


class _ViewSet(ABC):
    """The common part of both kinds of `ImageSet`. It chooses crops and mirrors them."""

    def __init__(
        self, labels: Int64[np.ndarray, " n"], size: tuple[int, int], config: DataConfig, cache: PixelCache
    ) -> None:
        self.labels = labels
        self.size = size
        self._config = config
        self._cache = cache
        self._ten_crop = config.token_views == "ten-crop"
        self.views = (5 if self._ten_crop else 1) * (2 if config.flip else 1)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def center_view(self, index: int) -> Pixels:
        """The evaluation view."""

    @abstractmethod
    def _center_of_size(self, index: int, size: tuple[int, int]) -> Pixels:
        """The center view at another size (rows, columns)."""

    @abstractmethod
    def _random_view(self, index: int, rng: np.random.Generator) -> Pixels:
        """A random crop of the set's size."""

    def train_view(self, index: int, rng: np.random.Generator) -> Pixels:
        """A random or center crop (`data.crop`), mirrored with probability 1/2 (`data.flip`)."""
        view = self._random_view(index, rng) if self._config.crop == "random" else self.center_view(index)
        return crops.flip_maybe(view, rng) if self._config.flip else view

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        """Ten-crop or the center crop (`data.token_views`), then the mirror images (`data.flip`)."""
        if self._ten_crop:
            views = crops.five_windows(self._center_of_size(index, crops.ten_crop_size(self.size)), self.size)
        else:
            views = self.center_view(index)[None]
        return crops.with_flips(views) if self._config.flip else views


class CroppedSet(_ViewSet, Generic[Key]):
    """An `ImageSet` that crops whole pictures by the rules of METHOD §2.

    Args:
        keys: names or numbers of the images, the arguments of `read`.
        labels: class id of each image.
        size: rows and columns of the views.
        read: returns the picture of a key as `halved` returns it, (h, w, 3) uint8, from any thread.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        labels: Int64[np.ndarray, " n"],
        size: tuple[int, int],
        config: DataConfig,
        cache: PixelCache,
        read: Callable[[Key], Picture],
    ) -> None:
        super().__init__(labels, size, config, cache)
        self.keys = tuple(keys)
        self._read = read

    def center_view(self, index: int) -> Pixels:
        return self._center_of_size(index, self.size)

    def _center_of_size(self, index: int, size: tuple[int, int]) -> Pixels:
        return crops.pixels(crops.center_crop(self._picture(index), size))

    def _random_view(self, index: int, rng: np.random.Generator) -> Pixels:
        return crops.pixels(crops.random_crop(self._picture(index), self.size, rng))

    def _picture(self, index: int) -> Image.Image:
        key = self.keys[index]
        return Image.fromarray(self._cache.get(key, lambda: self._read(key)))


def halved(image: Image.Image, size: tuple[int, int]) -> Picture:
    """An RGB picture as an array (h, w, 3), halved as often as every crop of `size` allows, to save memory."""
    return np.array(crops.halve(image, crops.largest_random(size)))


class RenderedSet(_ViewSet):
    """An `ImageSet` that draws its pictures at any size."""

    @abstractmethod
    def render(self, index: int, height: int, width: int) -> Pixels:
        """Draw picture `index`."""

    def factors(self, index: int) -> dict[str, Any]:
        """The known factors of picture `index` by name."""
        return {}

    def center_view(self, index: int) -> Pixels:
        return self._cache.get(index, lambda: self.render(index, *self.size))

    def _center_of_size(self, index: int, size: tuple[int, int]) -> Pixels:
        return self.render(index, *size)

    def _random_view(self, index: int, rng: np.random.Generator) -> Pixels:
        return crops.cut_random(self.render(index, *crops.random_size(self.size, rng)), self.size, rng)
