"""Which files of a folder or zip are images, their labels, and their splits."""

from __future__ import annotations

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from prologue.data.folder.rules import FileRule
from prologue.data.folder.storage import Storage
from prologue.data.folder.tables import LABELS_FILE, Table, find_table
from prologue.data.names import counted, natural_key, parents, readable, same_letters, some, valid_text
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
"""Files that mark a folder as written by this package, and their keys."""
_LARGEST_MARKER = 1 << 26
_GRID = "grid.png"


@dataclass
class Listing:
    """The images in natural order, their labels, and notes for the user about other files."""

    names: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    """None if there are no classes."""
    held_out: frozenset[str] | None = None
    """Names of the validation images; None if they are chosen from all images."""
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Files that are not used and the reason, in a few words each."""


def list_images(storage: Storage, where: str, rule: FileRule) -> Listing:
    """Find the images and their labels. Labels come from a table, or else from subfolders, which are then the classes.
    Without both there are no labels.

    Top folders named after splits are splits, and labels are searched in each of them.

    Raises:
        DataError: there are no images; or images lie beside class folders; or splits contradict each other; or a
            table names a missing file or lacks a column.
    """
    return _Lister(storage, where, rule).listing


class _Lister:
    def __init__(self, storage: Storage, where: str, rule: FileRule) -> None:
        self.storage, self.where, self.rule = storage, readable(where), rule
        self.listing = Listing()
        self.outputs: frozenset[str] = frozenset()
        """Folders that this package wrote."""
        names = self._own_images()
        self._note_other_formats()
        if not names:
            found = counted(len(storage.sizes), "other file") if storage.sizes else "nothing"
            raise DataError(
                f"{self.where} holds no {rule.formats} image ({found}): put images there, or give another place"
            )
        splits = self._splits(names)
        if splits is not None:
            self._take_splits(splits)
        else:
            label_of = self._labels(names, "")
            self._take(names if label_of is None else label_of, label_of)

    def _take(self, names: Collection[str], label_of: dict[str, str] | None) -> None:
        self.listing.names = tuple(sorted(names, key=natural_key))
        self.listing.labels = None if label_of is None else tuple(label_of[name] for name in self.listing.names)

    def _own_images(self) -> list[str]:
        """The image files outside of folders that this package wrote, in natural order."""
        left_out, skipped = self.listing.left_out, self.storage.left_out
        if skipped.folders:
            left_out.append(f"system folders ({some(map(readable, skipped.folders))})")
        if skipped.images:
            left_out.append(f"{skipped.images} hidden")
        if skipped.repeated:
            left_out.append(f"{skipped.repeated} replaced by a later entry of the same name")
        names = sorted(filter(self.rule.is_image, self.storage.sizes), key=natural_key)
        if self.rule.first:
            return names
        found = list(self._find_outputs())
        own = {marker for folder, marker in found if not folder}
        refused = own - {"generation.json"}
        if refused:
            raise DataError(
                f"{self.where} is a folder that prologue wrote ({min(refused)}), not a folder of images: "
                "give the folder of the images"
            )
        self.outputs = frozenset(folder for folder, _ in found if folder)
        if self.outputs:
            left_out.append(f"folders written by prologue ({some(map(readable, self.outputs))})")
        names = [name for name in names if self.outputs.isdisjoint(parents(name))]
        if own and _GRID in names:
            names.remove(_GRID)
            left_out.append(f"{_GRID}, an overview of the generated images")
        return names

    def _find_outputs(self) -> Iterator[tuple[str, str]]:
        """(folder, marker) of each folder that this package wrote."""
        for name, size in self.storage.sizes.items():
            folder, _, base = name.rpartition("/")
            if base in _OUTPUTS and size <= _LARGEST_MARKER:
                try:
                    content = json.loads(self.storage.read(name))
                except (DataError, ValueError):
                    continue
                if isinstance(content, dict) and content.keys() >= _OUTPUTS[base]:
                    yield folder, base

    def _note_other_formats(self) -> None:
        """Add a note about images in formats that are not read."""
        unread = tuple(suffix for suffix in _OTHER_IMAGES if suffix not in self.rule.suffixes)
        others = sorted((name for name in self.storage.sizes if name.lower().endswith(unread)), key=natural_key)
        if others:
            kinds = Counter(posixpath.splitext(name)[1].lower() for name in others)
            ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            self.listing.left_out.append(ignored)
            formats = self.rule.formats.replace(" or ", " and ")
            self.listing.notes.append(
                f"Only {formats} are read; ignored: {ignored} (for example {readable(others[0])})."
            )

    def _splits(self, names: Sequence[str]) -> dict[str, tuple[str, list[str]]] | None:
        """{split: (its folder, its images)} if every top folder with images has a split's name, else None."""
        inside: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            inside[name.partition("/")[0] if "/" in name else ""].append(name)
        splits: dict[str, tuple[str, list[str]]] = {}
        for folder, images in inside.items():
            split = self.rule.split_of(folder)
            if split is None:
                return None
            if split in splits:
                raise DataError(
                    f"{self.where} holds {splits[split][0]}/ and {folder}/, which both mean the {split} images: "
                    "put them into one folder"
                )
            splits[split] = folder, images
        return splits

    def _take_splits(self, splits: dict[str, tuple[str, list[str]]]) -> None:
        """Take training and validation images. Test images are left out, so that no model is selected on them."""
        listing = self.listing
        everything = [name for _, images in splits.values() for name in images]
        if "test" in splits:
            folder, images = splits.pop("test")
            listing.left_out.append(f"{counted(len(images), 'test image')} in {folder}/")
            if not splits:
                raise DataError(
                    f"{self.where} holds only test images ({folder}/): put training images into train/, "
                    f"or give {self.where}/{folder} itself to measure on them"
                )
        self._note_empty_folders("", {name.partition("/")[0] for name in everything})
        listing.notes.append(_split_sentence(splits))
        taken = [name for _, images in splits.values() for name in images]
        table, _ = find_table(self.storage, "", everything, self.rule)
        label_of = self._by_table(table, taken) if table is not None else self._labels_of_splits(splits)
        if "validation" in splits:
            listing.held_out = frozenset(splits["validation"][1])
        if not label_of:
            self._take(taken, None)
            return
        strange: set[str] = set()
        if {"train", "validation"} <= splits.keys():
            known = {label_of[name] for name in splits["train"][1] if name in label_of}
            strange = {name for name in label_of if label_of[name] not in known}
        if strange:
            folder, classes = splits["validation"][0], {label_of[name] for name in strange}
            listing.left_out.append(f"{len(strange)} in {folder}/ of classes without training images ({some(classes)})")
        self._take(label_of.keys() - strange, label_of)

    def _labels_of_splits(self, splits: dict[str, tuple[str, list[str]]]) -> dict[str, str]:
        """{image: label}; empty if no split has classes."""
        found = {folder: self._labels(images, f"{folder}/") for folder, images in splits.values()}
        labelled = [folder for folder, labels in found.items() if labels]
        unlabelled = [folder for folder, labels in found.items() if labels is None]
        if labelled and unlabelled:
            raise DataError(
                f"{self.where}: the images in {labelled[0]}/ have classes and those in {unlabelled[0]}/ have none: "
                "sort both into class folders, or neither"
            )
        return {name: label for labels in found.values() for name, label in (labels or {}).items()}

    def _labels(self, images: Sequence[str], folder: str) -> dict[str, str] | None:
        """{image: label} of the images in `folder` ("" or "name/"); None if they have no classes."""
        table, sentences = find_table(self.storage, folder, images, self.rule)
        self.listing.notes += sentences
        if table is not None:
            return self._by_table(table, images)
        inner = {name: name.removeprefix(folder) for name in images}
        flat = [name for name in images if "/" not in inner[name]]
        nested = [name for name in images if "/" in inner[name]]
        if flat and nested:
            raise DataError(
                f"{self.where} holds images beside class folders ({readable(flat[0])} and {readable(nested[0])}, "
                "for example): move every image into a class folder, or all out of them, or label them in a "
                f"{LABELS_FILE} (file,label)"
            )
        if flat:
            return None
        labels = {name: inner[name].partition("/")[0] for name in nested}
        if not self.rule.first:
            self._note_empty_folders(folder, set(labels.values()))
        return {name: self._class_name(label) for name, label in labels.items()}

    def _by_table(self, table: Table, images: Sequence[str]) -> dict[str, str]:
        """{image: label} of those images that the table names."""
        label_of = {name: self._class_name(table.labels[name]) for name in images if name in table.labels}
        if len(label_of) < len(images):
            missing, base = len(images) - len(label_of), posixpath.basename(table.name)
            self.listing.notes.append(f"{missing} images that {base} does not name are left out.")
            self.listing.left_out.append(f"{missing} without a label in {base}")
        return label_of

    def _note_empty_folders(self, folder: str, classes: set[str]) -> None:
        """Note the folders beside the class folders that hold no image and so are not classes."""
        beside = {name.removeprefix(folder) for name in self.storage.folders if name.startswith(folder)}
        written = {name.removeprefix(folder).partition("/")[0] for name in self.outputs if name.startswith(folder)}
        empty = {name for name in beside if "/" not in name} - classes - written
        if empty:
            self.listing.left_out.append(
                f"{counted(len(empty), 'folder')} without an image ({some(map(readable, empty))})"
            )

    def _class_name(self, label: str) -> str:
        """The label as text that can be written, printed and typed again."""
        return valid_text(label) if self.rule.first else readable(same_letters(label))


def _split_sentence(splits: dict[str, tuple[str, list[str]]]) -> str:
    said = [f"{folder}/ holds the {split} images" for split, (folder, _) in splits.items()]
    if "validation" not in splits:
        said.append("the validation images are taken from them")
    return f"The top folders are splits, not classes: {', '.join(said)}. (--data.file-rule 1 treats them as classes.)"
