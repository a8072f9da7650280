"""`digits`: scikit-learn's 1,797 scans of handwritten digits, the smallest set of real images."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from prologue.config import DataConfig
from prologue.data.source import Data, fingerprint, seen_options
from prologue.data.views import PixelCache, RenderedSet
from prologue.errors import MissingExtraError

DIGITS = tuple(str(digit) for digit in range(10))


class DigitsSet(RenderedSet):
    """Scans (n, 8, 8) uint8, bright ink on black, enlarged bicubically to a square in the middle of the picture.

    They are never mirrored, even with `data.flip`, because a mirrored digit is not a digit.
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
        side = min(height, width)
        scan = Image.fromarray(self._scans[index]).resize((side, side), resample=Image.Resampling.BICUBIC)
        picture = np.zeros((3, height, width), dtype=np.uint8)
        top, left = (height - side) // 2, (width - side) // 2
        picture[:, top : top + side, left : left + side] = np.asarray(scan)
        return picture


def load_scans(feature: str) -> tuple[UInt8[np.ndarray, "n 8 8"], Int64[np.ndarray, " n"]]:
    """All scans and their digits.

    Raises:
        MissingExtraError: scikit-learn is not installed; the message says that `feature` needs it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(feature, "digits") from error
    bunch = load_digits()
    scans = np.round(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    return scans, np.asarray(bunch.target, dtype=np.int64)


def held_out(labels: Int64[np.ndarray, " n"], fraction: float) -> Bool[np.ndarray, " n"]:
    """True for the same `fraction` of every class. A positive fraction selects at least one image, and never all of
    them."""
    held = np.zeros(len(labels), dtype=bool)
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"digits-{index}".encode()).digest())
    ranked = np.array(order, dtype=np.int64)
    for label in np.unique(labels):
        members = ranked[labels[ranked] == label]
        count = min(len(members) - 1, max(1, round(fraction * len(members)))) if fraction > 0 else 0
        held[members[:count]] = True
    return held


@dataclass(frozen=True)
class Digits:
    """The source `digits`. `data.validation_fraction` of each class is held out."""

    def open(self, config: DataConfig, image_size: tuple[int, int]) -> Data:
        """Raises `MissingExtraError` without scikit-learn."""
        scans, labels = load_scans("--data digits")
        held = held_out(labels, config.validation_fraction)
        return Data(
            train=DigitsSet(scans[~held], labels[~held], image_size, config),
            validation=DigitsSet(scans[held], labels[held], image_size, config),
            class_names=DIGITS,
            fingerprint=fingerprint(
                source="digits",
                content=hashlib.sha256(scans.tobytes() + labels.tobytes()).hexdigest(),
                validation=config.validation_fraction,
                **{**seen_options(config, image_size), "flip": False},
            ),
        )
