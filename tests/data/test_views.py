"""The memory of decoded pictures stays within its bound."""

from __future__ import annotations

import numpy as np
import pytest

from prologue.data.views import PixelCache


def test_it_keeps_the_first_pictures_that_fit() -> None:
    cache = PixelCache(1)
    made: list[int] = []

    def picture(key: int) -> np.ndarray:
        made.append(key)
        return np.full((3, 400, 400), key, dtype=np.uint8)  # 0.46 MiB: two fit

    for _ in range(2):
        assert [int(cache.get(key, lambda key=key: picture(key))[0, 0, 0]) for key in range(3)] == [0, 1, 2]  # type: ignore[misc]
    assert made == [0, 1, 2, 2]
    assert len(cache) == 2


def test_kept_pictures_cannot_be_written_to() -> None:
    cache = PixelCache(1)
    kept = cache.get("a", lambda: np.zeros((3, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        kept[:] = 1
