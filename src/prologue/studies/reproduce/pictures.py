"""Pictures of a piece: its first samples, and images resampled from one prologue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from prologue.data.pictures import labelled_grid, save_png, to_pil
from prologue.evaluation.kinds.layout import Shown

FOLDER = "pictures"
_RESAMPLES = 6


def resampled_picture(shown: Shown, class_names: Sequence[str]) -> Image.Image:
    """A row per prologue: its image, the reconstruction, and images drawn from the prologue."""
    count = min(_RESAMPLES, shown.samples.shape[1])
    sources, decoded = to_pil(shown.images), to_pil(shown.reconstructions)
    rows = [
        [sources[row], decoded[row], *to_pil(samples[:count])] for row, samples in enumerate(shown.samples.unbind())
    ]
    columns = ["image", "decoded", *(f"drawn {number + 1}" for number in range(count))]
    names = [class_names[each] if each < len(class_names) else "" for each in shown.class_ids.tolist()]
    return labelled_grid(rows, columns, names if class_names else ())


def save_picture(picture: Image.Image, folder: Path, piece: str, kind: str) -> None:
    """Write a picture of a piece."""
    save_png(folder / f"{piece}-{kind}.png", picture)


def find_picture(folder: Path, piece: str, kind: str) -> Image.Image | None:
    """The picture of a piece, if it exists."""
    path = folder / f"{piece}-{kind}.png"
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return picture.convert("RGB")
