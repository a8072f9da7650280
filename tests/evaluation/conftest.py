"""Images and features that are quick to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


class _Pictures:
    """Random images as an `ImageSet`, read through center views alone."""

    size = (8, 12)
    views = 1

    def __init__(self, count: int, classes: int = 3, seed: int = 0) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, *self.size), dtype=np.uint8)
        self.labels = np.arange(count, dtype=np.int64) % classes

    def __len__(self) -> int:
        return len(self.pixels)

    def center_view(self, index: int) -> np.ndarray:
        return self.pixels[index]


class _Means:
    """Features that need no network: mean colours; remembers what it was shown."""

    name, dimension, hash = "Means", 3, "abc"

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        self.shown.append(images)
        return images.float().mean((2, 3))


@pytest.fixture
def pictures() -> type[Any]:
    """The class of images in memory."""
    return _Pictures


@pytest.fixture
def means() -> type[Any]:
    """The class of features that are mean colours."""
    return _Means
