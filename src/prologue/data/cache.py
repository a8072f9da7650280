"""A bounded memory of decoded pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "_ _ _"]


class PixelCache:
    """Keeps the first pictures asked for, until `megabytes` MiB are full. Pictures in it are read-only.

    Nothing is ever thrown out: an epoch visits each picture once, in an order in which "least recently used" would
    always drop the one that comes next.
    """

    def __init__(self, megabytes: int) -> None:
        self._room = megabytes << 20
        self._pictures: dict[int | str, Picture] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, key: int | str, make: Callable[[], Picture]) -> Picture:
        """The picture `key`, made now if it is not kept."""
        kept = self._pictures.get(key)
        return self.put(key, make()) if kept is None else kept

    def put(self, key: int | str, picture: Picture) -> Picture:
        """Keep `picture` if there is room; returns it."""
        with self._lock:
            if key not in self._pictures and picture.nbytes <= self._room:
                picture.flags.writeable = False
                self._pictures[key] = picture
                self._room -= picture.nbytes
        return picture
