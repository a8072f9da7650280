"""What every source of images offers: the interface of an image set, and the splits of a source."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, UInt8

from prologue.config import DataConfig
from prologue.data.names import counted, readable


class ImageSet(Protocol):
    """One split of a data source, at one image size. All pictures are RGB uint8, channels first.

    An image set may be read from several threads.
    """

    size: tuple[int, int]
    """Image rows and columns, in pixels."""
    labels: Int64[np.ndarray, " n"]
    """Class id of each image; all 0 where there are no classes."""
    views: int
    """Views per image that `token_views` gives."""

    def __len__(self) -> int: ...

    def center_view(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        """The evaluation view: the center crop of METHOD §2. The array may be shared: do not write to it."""
        ...

    def train_view(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "3 H W"]:
        """A training view: crop as `data.crop`, mirrored by chance if `data.flip`."""
        ...

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        """The fixed views of which the token store holds the tokens (`data.token_views`, `data.flip`)."""
        ...


class FileRecord(NamedTuple):
    """What is known of an image file without its pixels: its relative name, its bytes, and its class if it has one."""

    name: str
    size: int
    label: str | None


@dataclass(frozen=True)
class Data:
    """A data source opened at one image size: its splits, its classes, and what the user should know."""

    train: ImageSet
    validation: ImageSet
    """Held-out images; may have length 0."""
    class_names: tuple[str, ...]
    """Names in the order of class ids; empty where the images have no labels."""
    fingerprint: str
    """Changes with the files' names, sizes and labels, and with every option that changes what is seen."""
    notes: tuple[str, ...] = ()
    """Sentences to be said once."""
    left_out: tuple[str, ...] = ()
    """What the source holds and is not taken, and why, in a few words each."""
    file_rule: int | None = None
    """The rule by which the files of a folder or zip were read; None for embedded data."""
    files: tuple[FileRecord, ...] = ()
    """The image files of a folder or zip, of both splits."""
    content: str | None = None
    """Changes with every file that is written again, also with the same size; None for embedded images."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def summary(self, where: str) -> str:
        """The line with which a command that opens `where` begins: images, classes, what is held and left out."""
        held, total = len(self.validation), len(self.train) + len(self.validation)
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{readable(where)}: {counted(total, 'image')} {self._classes()}, {held:,} held out{left_out}"

    def _classes(self) -> str:
        if not self.class_names:
            return "without classes"
        labels = np.concatenate([self.train.labels, self.validation.labels])
        counts = np.bincount(labels, minlength=self.num_classes)
        few, many = int(counts.argmin()), int(counts.argmax())
        if self.num_classes == 1:
            return f"in 1 class ({self.class_names[0]})"
        if counts[few] == counts[many]:
            return f"in {self.num_classes} classes of {counts[few]:,} each"
        smallest, largest = (f"{self.class_names[each]} with {counts[each]:,}" for each in (few, many))
        return f"in {self.num_classes} classes (smallest {smallest}, largest {largest})"


def fingerprint(**parts: Any) -> str:
    """A short hash of JSON values, equal on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def seen_options(config: DataConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    """The options that change what every source shows, for its fingerprint."""
    names = ("crop", "flip", "token_views")
    return {"image_size": list(image_size), **{name: getattr(config, name) for name in names}}
