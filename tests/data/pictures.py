"""Folders of small pictures, and what is opened of them."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prologue.config import DataConfig
from prologue.data.source import Data, open_data
from prologue.data.views import CroppedSet
from prologue.utils.rng import numpy_stream

CONFIG = DataConfig(validation_fraction=0.25)
SIZE = (16, 16)


def save(path: Path, rows: int = 20, columns: int = 24) -> None:
    """A picture whose pixels follow from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = numpy_stream(0, ascii(path.name), ascii(path.parent.name)).integers(
        0, 256, (rows, columns, 3), dtype=np.uint8
    )
    Image.fromarray(noise).save(path)


def fill(root: Path, *folders: str, count: int = 4, suffix: str = ".png") -> Path:
    """`count` pictures in each folder below `root`."""
    for folder in folders:
        for number in range(count):
            save(root / folder / f"{number}{suffix}")
    return root


def pack(root: Path, archive: Path, wrapper: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as packed:
        for path in sorted(root.rglob("*")):
            packed.write(path, wrapper + path.relative_to(root).as_posix())
    return archive


def place(root: Path, form: str) -> Path:
    """`root` itself, or a zip of it: `folder`, `zip`, `wrapped zip` (in one top folder) or `stored zip`."""
    if form == "folder":
        return root
    method = zipfile.ZIP_STORED if form == "stored zip" else zipfile.ZIP_DEFLATED
    return pack(root, root.with_suffix(".zip"), f"{root.name}/" if form == "wrapped zip" else "", method)


def names(data: Data) -> tuple[list[str], list[str]]:
    assert isinstance(data.train, CroppedSet)
    assert isinstance(data.validation, CroppedSet)
    return list(data.train.keys), list(data.validation.keys)


def labelled(data: Data) -> dict[str, str]:
    """{image name: class name} of both splits."""
    return {
        name: data.class_names[label]
        for part, members in zip((data.train, data.validation), names(data), strict=True)
        for name, label in zip(members, part.labels.tolist(), strict=True)
    }


def same(one: Data, other: Data) -> None:
    assert names(one) == names(other)
    assert one.class_names == other.class_names
    assert one.fingerprint == other.fingerprint
    for a, b in ((one.train, other.train), (one.validation, other.validation)):
        np.testing.assert_array_equal(a.labels, b.labels)
        if len(a):
            np.testing.assert_array_equal(a.center_view(0), b.center_view(0))


def opened(where: Path, size: tuple[int, int] = SIZE, **options: Any) -> Data:
    """A folder or zip, opened with `CONFIG` and these options."""
    return open_data(str(where), dataclasses.replace(CONFIG, **options), size)
