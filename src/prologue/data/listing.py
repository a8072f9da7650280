"""Which files of a folder or zip are images, and their labels."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prologue.data.decode import SUFFIXES
from prologue.data.storage import Storage
from prologue.errors import DataError

LABELS_FILE = "labels.csv"
_OTHER_IMAGES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".svg")


@dataclass(frozen=True)
class Listing:
    """Image names in natural order and their labels; `labels` is None where there are no classes."""

    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts img2 before img10, and upper and lower case together."""
    parts: list[str | int] = [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name.casefold())]
    return parts, name


def list_images(storage: Storage, where: str) -> Listing:
    """Find the images: by `labels.csv` if there is one, else one class per subfolder, else flat and unlabelled.

    Raises `DataError` for a place without images, for images beside class folders, and for a labels.csv that
    names a missing file or lacks a column.
    """
    images = sorted((name for name in storage.sizes if name.lower().endswith(SUFFIXES)), key=natural_key)
    notes = list(_passed_over(storage))
    if not images:
        found = f"{len(storage.sizes)} other files" if storage.sizes else "nothing"
        raise DataError(f"{where} holds no PNG, JPEG or WebP image ({found}): put images there, or give another place")
    if LABELS_FILE in storage.sizes:
        labelled = _read_labels(storage, frozenset(images))
        names = sorted(labelled, key=natural_key)
        if len(names) < len(images):
            notes.append(f"{len(images) - len(names)} images that {LABELS_FILE} does not name are left out.")
        return Listing(tuple(names), tuple(labelled[name] for name in names), tuple(notes))
    flat = [name for name in images if "/" not in name]
    nested = [name for name in images if "/" in name]
    if flat and nested:
        raise DataError(
            f"{where} holds images beside class folders ({flat[0]} and {nested[0]}, for example): move every image "
            f"into a class folder, or all out of them, or label them in a {LABELS_FILE} (file,label)"
        )
    if flat:
        return Listing(tuple(flat), None, tuple(notes))
    return Listing(tuple(nested), tuple(name.partition("/")[0] for name in nested), tuple(notes))


def _passed_over(storage: Storage) -> Iterator[str]:
    """A sentence about images in formats that are not read."""
    others = sorted((name for name in storage.sizes if name.lower().endswith(_OTHER_IMAGES)), key=natural_key)
    if others:
        kinds = Counter(posixpath.splitext(name)[1].lower() for name in others)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield f"Only PNG, JPEG and WebP are read; passed over: {counted} (for example {others[0]})."


def _read_labels(storage: Storage, images: frozenset[str]) -> dict[str, str]:
    """{image name: label} from the labels file."""
    shown = storage.shown(LABELS_FILE)
    try:
        text = storage.read(LABELS_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not UTF-8 text: save it as UTF-8") from error
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [name.strip() for name in rows.fieldnames or ()]
    for column in ("file", "label"):
        if column not in header:
            raise DataError(f"{shown} lacks the column '{column}': its first line must be 'file,label', not {header}")
    rows.fieldnames = header
    labelled: dict[str, str] = {}
    for row in rows:
        given, label = (row["file"] or "").strip(), (row["label"] or "").strip()
        line = f"{shown} line {rows.line_num}"
        if not given or not label:
            raise DataError(f"{line} has no {'label' if given else 'file'}: give both, or remove the line")
        name = posixpath.normpath(given.replace("\\", "/"))
        if name not in images:
            state = "is not a PNG, JPEG or WebP image" if name in storage.sizes else "does not exist there"
            raise DataError(f"{line} names {given}, which {state}: correct or remove the line")
        if labelled.setdefault(name, label) != label:
            raise DataError(f"{line} calls {given} {label!r}, an earlier line {labelled[name]!r}: keep one of them")
    if not labelled:
        raise DataError(f"{shown} names no image: add lines 'file,label'")
    return labelled
