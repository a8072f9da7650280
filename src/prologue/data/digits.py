"""The embedded `digits`: scikit-learn's 1,797 real scans of handwritten digits, the smallest real set."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from prologue.config import DataConfig
from prologue.data.cache import PixelCache
from prologue.data.rendered import RenderedSet
from prologue.data.source import Data, fingerprint, seen_options
from prologue.errors import MissingExtraError


class DigitsSet(RenderedSet):
    """Scans (n, 8, 8) uint8, bright ink on black, enlarged bicubically; on a rectangle they stand in the middle.

    Never mirrored, whatever `data.flip` says: a mirrored digit is none.
    """

    def __init__(
        self,
        scans: UInt8[np.ndarray, "n 8 8"],
        labels: Int64[np.ndarray, " n"],
        size: tuple[int, int],
        config: DataConfig,
    ) -> None:
        super().__init__(labels, size, dataclasses.replace(config, flip=False), PixelCache(config.cache_mb))
        self._scans = scans

    def render(self, index: int, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
        """Scan `index` with side min(height, width)."""
        side = min(height, width)
        scan = Image.fromarray(self._scans[index]).resize((side, side), resample=Image.Resampling.BICUBIC)
        picture = np.zeros((3, height, width), dtype=np.uint8)
        top, left = (height - side) // 2, (width - side) // 2
        picture[:, top : top + side, left : left + side] = np.asarray(scan)
        return picture


def load_scans(feature: str) -> tuple[UInt8[np.ndarray, "n 8 8"], Int64[np.ndarray, " n"]]:
    """All scans and their digits; a `MissingExtraError` without scikit-learn says that `feature` needs it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(feature, "digits") from error
    bunch = load_digits()
    scans = np.round(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    return scans, np.asarray(bunch.target, dtype=np.int64)


def held_out(labels: Int64[np.ndarray, " n"], part: float) -> np.ndarray:
    """True for the same `part` of every class, at least one image where `part` is positive."""
    held = np.zeros(len(labels), dtype=bool)
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"digits-{index}".encode()).digest())
    ranked = np.array(order, dtype=np.int64)
    for label in np.unique(labels):
        members = ranked[labels[ranked] == label]
        count = min(len(members) - 1, max(1, round(part * len(members)))) if part > 0 else 0
        held[members[:count]] = True
    return held


def open_digits(config: DataConfig, image_size: tuple[int, int]) -> Data:
    """The scans as a data source, with a class-balanced validation part of `data.validation_fraction`.

    Raises `MissingExtraError` without scikit-learn.
    """
    scans, labels = load_scans("--data digits")
    held = held_out(labels, config.validation_fraction)
    return Data(
        train=DigitsSet(scans[~held], labels[~held], image_size, config),
        validation=DigitsSet(scans[held], labels[held], image_size, config),
        class_names=tuple(str(digit) for digit in range(10)),
        fingerprint=fingerprint(
            source="digits",
            content=hashlib.sha256(scans.tobytes() + labels.tobytes()).hexdigest(),
            validation=config.validation_fraction,
            **{**seen_options(config, image_size), "flip": False},
        ),
    )
