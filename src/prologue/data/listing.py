"""Which files of a folder or zip are images, their labels, and the splits that they lie in."""

from __future__ import annotations

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prologue.data.labels import LABELS_FILE, Table, find_table
from prologue.data.names import counted, natural_key, parents, readable, same_letters, some, valid_text
from prologue.data.rules import FileRule
from prologue.data.storage import Storage
from prologue.errors import DataError

_OTHER_IMAGES = (
    *(".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".svg", ".jfif"),
    *(".jpe", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr", ".ppm", ".pgm", ".pnm", ".qoi"),
    *(".ico", ".dds", ".apng"),
)
_OUTPUTS = {
    "run.json": {"format", "config", "facts", "stages"},
    "pipeline.json": {"format", "class_names"},
    "generation.json": {"request"},
    "study.json": {"format", "scale_name"},
}
"""Files by which folders are recognised that this package writes, and the keys that they have."""
_LARGEST_MARKER = 1 << 26
_GRID = "grid.png"


@dataclass
class Listing:
    """Image names in natural order and their labels; `labels` is None where there are no classes."""

    names: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    held_out: frozenset[str] | None = None
    """Names of the validation split; None where one is to be cut."""
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What is not taken, and why, in a few words each."""
    outputs: frozenset[str] = frozenset()
    """Folders that this package wrote."""


def list_images(storage: Storage, where: str, rule: FileRule) -> Listing:
    """Find the images and their labels: from a table if there is one, else one class per subfolder, else none.

    Folders named after splits at the top are splits, and labels are looked for in each. Raises `DataError` for a place
    without images, for images beside class folders, for splits that contradict each other, and for a table that names
    a missing file or lacks a column.
    """
    listing = Listing()
    names = _own_images(storage, where, rule, listing)
    _tell_passed_over(storage, rule, listing)
    if not names:
        found = counted(len(storage.sizes), "other file") if storage.sizes else "nothing"
        raise DataError(
            f"{readable(where)} holds no {rule.formats} image ({found}): put images there, or give another place"
        )
    splits = _splits(names, where, rule)
    if splits is None:
        label_of = _labels(storage, where, names, "", rule, listing)
        listing.names = tuple(names if label_of is None else sorted(label_of, key=natural_key))
        listing.labels = None if label_of is None else tuple(label_of[name] for name in listing.names)
    else:
        _take_splits(storage, where, splits, rule, listing)
    return listing


def _own_images(storage: Storage, where: str, rule: FileRule, listing: Listing) -> list[str]:
    """The image files that lie in no folder of this package's output, in natural order."""
    if storage.left_out.folders:
        listing.left_out.append(f"system folders ({some(map(readable, storage.left_out.folders))})")
    if storage.left_out.images:
        listing.left_out.append(f"{storage.left_out.images} hidden")
    if storage.left_out.repeated:
        listing.left_out.append(f"{storage.left_out.repeated} that a later entry of the same name replaces")
    names = [name for name in storage.sizes if rule.is_image(name)]
    if rule.first:
        return sorted(names, key=natural_key)
    found = list(_outputs(storage))
    own = {marker for folder, marker in found if not folder}
    refused = own - {"generation.json"}
    if refused:
        raise DataError(
            f"{readable(where)} is a folder that prologue wrote ({min(refused)}), not a folder of images: "
            "give the folder of the images"
        )
    listing.outputs = frozenset(folder for folder, _ in found if folder)
    if listing.outputs:
        listing.left_out.append(f"folders written by prologue ({some(map(readable, listing.outputs))})")
    names = [name for name in names if not any(parent in listing.outputs for parent in parents(name))]
    if own and _GRID in names:
        names.remove(_GRID)
        listing.left_out.append(f"{_GRID}, an overview of the generated images")
    return sorted(names, key=natural_key)


def _outputs(storage: Storage) -> Iterator[tuple[str, str]]:
    """(folder, marker) of what this package wrote."""
    for name, size in storage.sizes.items():
        folder, _, base = name.rpartition("/")
        if base in _OUTPUTS and size <= _LARGEST_MARKER:
            try:
                content = json.loads(storage.read(name))
            except (DataError, ValueError):
                continue
            if isinstance(content, dict) and content.keys() >= _OUTPUTS[base]:
                yield folder, base


def _tell_passed_over(storage: Storage, rule: FileRule, listing: Listing) -> None:
    """Images in formats that are not read."""
    unread = [ending for ending in _OTHER_IMAGES if ending not in rule.suffixes]
    others = sorted((name for name in storage.sizes if name.lower().endswith(tuple(unread))), key=natural_key)
    if others:
        kinds = Counter(posixpath.splitext(name)[1].lower() for name in others)
        passed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        listing.left_out.append(passed)
        formats = rule.formats.replace(" or ", " and ")
        listing.notes.append(f"Only {formats} are read; passed over: {passed} (for example {readable(others[0])}).")


def _splits(names: Sequence[str], where: str, rule: FileRule) -> dict[str, tuple[str, list[str]]] | None:
    """{split: (its folder, its images)} where every top folder with images has a split's name, else None."""
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        inside[name.partition("/")[0] if "/" in name else ""].append(name)
    splits: dict[str, tuple[str, list[str]]] = {}
    meant = {folder: rule.split_of(folder) for folder in inside}
    if None in meant.values():
        return None
    for folder, split in meant.items():
        assert split is not None
        if split in splits:
            raise DataError(
                f"{readable(where)} holds {splits[split][0]}/ and {folder}/, which both mean the {split} images: "
                "put them into one folder"
            )
        splits[split] = folder, inside[folder]
    return splits


def _take_splits(
    storage: Storage, where: str, splits: dict[str, tuple[str, list[str]]], rule: FileRule, listing: Listing
) -> None:
    """Training and validation images; those for tests are left out, so that they select no model."""
    everything = [name for _, images in splits.values() for name in images]
    if "test" in splits:
        folder, images = splits.pop("test")
        listing.left_out.append(f"{counted(len(images), 'test image')} in {folder}/")
        if not splits:
            raise DataError(
                f"{readable(where)} holds only test images ({folder}/): put training images into train/, "
                f"or give {readable(where)}/{folder} itself to measure on them"
            )
    _tell_empty(storage, "", {name.partition("/")[0] for name in everything}, listing)
    listing.notes.append(_split_sentence(splits))
    taken = [name for _, images in splits.values() for name in images]
    table, _ = find_table(storage, "", everything, rule)
    label_of: dict[str, str] = {}
    unlabelled: list[str] = []
    if table is not None:
        label_of = _by_table(table, taken, rule, listing)
    else:
        for folder, images in splits.values():
            labels = _labels(storage, where, images, f"{folder}/", rule, listing)
            label_of |= labels or {}
            unlabelled += [] if labels is not None else [folder]
        if unlabelled and label_of:
            labelled = next(folder for folder, _ in splits.values() if folder not in unlabelled)
            raise DataError(
                f"{readable(where)}: the images in {labelled}/ have classes and those in {unlabelled[0]}/ have none: "
                "sort both into class folders, or neither"
            )
    taken = [name for name in taken if not label_of or name in label_of]
    train = splits.get("train", ("", []))[1]
    if "validation" in splits:
        listing.held_out = frozenset(splits["validation"][1])
        if train:
            known = {label_of[name] for name in train if name in label_of}
            strange = [name for name in taken if label_of and label_of[name] not in known]
            if strange:
                folder, classes = splits["validation"][0], {label_of[name] for name in strange}
                listing.left_out.append(
                    f"{len(strange)} in {folder}/ of classes without training images ({some(classes)})"
                )
                taken = [name for name in taken if name not in set(strange)]
    listing.names = tuple(sorted(taken, key=natural_key))
    listing.labels = tuple(label_of[name] for name in listing.names) if label_of else None


def _split_sentence(splits: dict[str, tuple[str, list[str]]]) -> str:
    said = [f"{folder}/ holds the {split} images" for split, (folder, _) in splits.items()]
    if "validation" not in splits:
        said.append("the validation images are cut from them")
    return f"The top folders are splits, not classes: {', '.join(said)}. (--data.file-rule 1 takes them for classes.)"


def _labels(
    storage: Storage, where: str, images: Sequence[str], folder: str, rule: FileRule, listing: Listing
) -> dict[str, str] | None:
    """{image: label} of the images in `folder` ("" or "name/"); None where they have no classes."""
    table, sentences = find_table(storage, folder, images, rule)
    listing.notes += sentences
    if table is not None:
        return _by_table(table, images, rule, listing)
    inner = {name: name.removeprefix(folder) for name in images}
    flat = [name for name in images if "/" not in inner[name]]
    nested = [name for name in images if "/" in inner[name]]
    if flat and nested:
        raise DataError(
            f"{readable(where)} holds images beside class folders ({readable(flat[0])} and {readable(nested[0])}, "
            f"for example): move every image into a class folder, or all out of them, or label them in a {LABELS_FILE} "
            "(file,label)"
        )
    if flat:
        return None
    labels = {name: inner[name].partition("/")[0] for name in nested}
    if not rule.first:
        _tell_empty(storage, folder, set(labels.values()), listing)
    return {name: _class_name(label, rule) for name, label in labels.items()}


def _by_table(table: Table, images: Sequence[str], rule: FileRule, listing: Listing) -> dict[str, str]:
    """{image: label} of those images that the table names."""
    label_of = {name: _class_name(table.labels[name], rule) for name in images if name in table.labels}
    if len(label_of) < len(images):
        missing, base = len(images) - len(label_of), posixpath.basename(table.name)
        listing.notes.append(f"{missing} images that {base} does not name are left out.")
        listing.left_out.append(f"{missing} without a label in {base}")
    return label_of


def _tell_empty(storage: Storage, folder: str, classes: set[str], listing: Listing) -> None:
    """Folders beside the class folders that hold no image, and so are no classes."""
    beside = {name.removeprefix(folder) for name in storage.folders if name.startswith(folder)}
    written = {output.removeprefix(folder).partition("/")[0] for output in listing.outputs if output.startswith(folder)}
    empty = {name for name in beside if "/" not in name} - classes - written
    if empty:
        listing.left_out.append(f"{counted(len(empty), 'folder')} without an image ({some(map(readable, empty))})")


def _class_name(label: str, rule: FileRule) -> str:
    """The label as text that can be written, printed and typed again."""
    return valid_text(label) if rule.first else readable(same_letters(label))
