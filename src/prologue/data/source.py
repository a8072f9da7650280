"""Sources of images: the values of `--data`, the interface of a source, and the function that opens one.

`--data` names embedded images (`shapes:grain=0.3`), a source of the caller's own code (`module:Name:key=value,…`), or
the path of a folder or zip. A source is a class whose constructor takes the options. To add one, derive a class from
`ImageSource` and register it with `SOURCES.register`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, get_origin, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from prologue.config import DataConfig
from prologue.data.decode import upright_rgb
from prologue.data.names import counted, readable
from prologue.data.splits import hold_out
from prologue.data.views import CroppedSet, PixelCache, halved
from prologue.errors import ConfigError, DataError
from prologue.utils.registry import Registry

EMBEDDED = ("shapes", "digits", "plates")
"""Names of the images in the package. A folder of such a name is written as ./NAME."""
ENDLESS = ("shapes", "plates")
"""Embedded images whose number the run chooses."""


class ImageSet(Protocol):
    """One split of a source at one image size. Views are RGB uint8, channels first.

    An image set may be read from several threads.
    """

    size: tuple[int, int]
    """Image rows and columns, in pixels."""
    labels: Int64[np.ndarray, " n"]
    """Class id of each image; all 0 if there are no classes."""
    views: int
    """Number of views per image in `token_views`."""

    def __len__(self) -> int: ...

    def center_view(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        """The evaluation view: the center crop of METHOD §2. The array may be shared: do not write to it."""
        ...

    def train_view(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "3 H W"]:
        """A training view: a crop by `data.crop`, mirrored at random if `data.flip` is set."""
        ...

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        """The fixed views whose ids the token store holds (`data.token_views`, `data.flip`)."""
        ...


class JoinedSet:
    """An `ImageSet` of the images of several sets, in their order. The sets have one size and number of views."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self.sets = tuple(sets)
        self.size, self.views = sets[0].size, sets[0].views
        self.labels: Int64[np.ndarray, " n"] = np.concatenate([each.labels for each in sets])

    def __len__(self) -> int:
        return len(self.labels)

    def center_view(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        images, inside = self._find(index)
        return images.center_view(inside)

    def train_view(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "3 H W"]:
        images, inside = self._find(index)
        return images.train_view(inside, rng)

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        images, inside = self._find(index)
        return images.token_views(inside)

    def _find(self, index: int) -> tuple[ImageSet, int]:
        for images in self.sets:
            if 0 <= index < len(images):
                return images, index
            index -= len(images)
        raise IndexError(f"an index lies outside the {len(self)} images")


class FileRecord(NamedTuple):
    """An image file without its pixels: relative name, bytes, and class if it has one."""

    name: str
    size: int
    label: str | None


@dataclass(frozen=True)
class Data:
    """A source opened at one image size: its splits, its classes, and notes for the user."""

    train: ImageSet
    validation: ImageSet
    """Held-out images; may have length 0."""
    class_names: tuple[str, ...]
    """Names in the order of class ids; empty if the images have no labels."""
    fingerprint: str
    """Text that changes with the files' names, sizes and labels, and with every option that changes a view."""
    notes: tuple[str, ...] = ()
    """Notes that are printed once."""
    left_out: tuple[str, ...] = ()
    """Files that are not used and the reason, in a few words each."""
    file_rule: int | None = None
    """The rule by which the files of a folder or zip were read; None for other sources."""
    files: tuple[FileRecord, ...] = ()
    """The image files of a folder or zip, of both splits."""
    content: str | None = None
    """Text that changes with every file that is written again, even with the same size; None for sources without
    files."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def whole(self) -> ImageSet:
        """The images of both splits."""
        return JoinedSet((self.train, self.validation)) if len(self.validation) else self.train

    def summary(self, where: str) -> str:
        """One line for the user: number of images, classes, images held out and left out."""
        held, total = len(self.validation), len(self.train) + len(self.validation)
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{readable(where)}: {counted(total, 'image')} {self._classes()}, {held:,} held out{left_out}"

    def _classes(self) -> str:
        if not self.class_names:
            return "without classes"
        if self.num_classes == 1:
            return f"in 1 class ({self.class_names[0]})"
        counts = np.bincount(self.whole().labels, minlength=self.num_classes)
        few, many = int(counts.argmin()), int(counts.argmax())
        if counts[few] == counts[many]:
            return f"in {self.num_classes} classes of {counts[few]:,} each"
        smallest, largest = (f"{self.class_names[each]} with {counts[each]:,}" for each in (few, many))
        return f"in {self.num_classes} classes (smallest {smallest}, largest {largest})"


def fingerprint(**parts: Any) -> str:
    """A short hash of JSON values, equal on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def seen_options(config: DataConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    """The options that change the views of every source, for its fingerprint."""
    names = ("crop", "flip", "token_views")
    return {"image_size": list(image_size), **{name: getattr(config, name) for name in names}}


@runtime_checkable
class Source(Protocol):
    """A source that `--data` names. Its constructor takes the options."""

    def open(self, config: DataConfig, image_size: tuple[int, int]) -> Data:
        """Open it for images of `image_size` (rows, columns)."""
        ...


SOURCES: Registry[Callable[..., Source]] = Registry(
    "data source",
    {
        "shapes": "prologue.data.embedded.shapes:Shapes",
        "digits": "prologue.data.embedded.digits:Digits",
        "plates": "prologue.data.embedded.plates:Plates",
        "folder": "prologue.data.folder.images:Folder",
    },
)
"""Sources by name. `folder` opens paths; users write the path without this name."""


class ImageSource(ABC):
    """Base class of a source from outside the package. It gives whole pictures; the package crops and caches them.

    Pictures are read from several threads at once.
    """

    fingerprint: str
    """Text that changes whenever a picture changes: a version, or a hash of file names and sizes."""
    class_names: Sequence[str] = ()
    """Names in the order of class ids; empty if the images have no labels."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image | UInt8[np.ndarray, "h w 3"]:
        """Picture `index`, of any size: a Pillow image of any mode, or RGB as a uint8 array."""

    def label(self, index: int) -> int:
        """The class id of picture `index`. It is not called if there are no class names."""
        return 0

    def split(self, index: int) -> Literal["train", "validation"] | None:
        """The split of picture `index`. If it is None for all pictures, `data.validation_fraction` of each class is
        held out."""
        return None

    def open(self, config: DataConfig, image_size: tuple[int, int]) -> Data:
        """Raises `DataError` if something is missing or impossible; the message names it."""
        count, class_names = len(self), tuple(map(str, self.class_names))
        if count == 0:
            raise DataError(f"{self._name} has no images")
        if not isinstance(getattr(self, "fingerprint", None), str):
            raise DataError(f"{self._name} has no fingerprint: set it to text that changes whenever a picture changes")
        if len(set(class_names)) < len(class_names):
            raise DataError(f"{self._name} has two classes of one name: {', '.join(class_names)}")
        labels = np.array([self.label(index) if class_names else 0 for index in range(count)], dtype=np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= max(1, len(class_names))))
        if len(wrong):
            raise DataError(
                f"label({wrong[0]}) of {self._name} is {labels[wrong[0]]}: class ids are 0 to "
                f"{len(class_names) - 1}, as there are {len(class_names)} class names"
            )
        splits = [self.split(index) for index in range(count)]
        if set(splits) == {None}:
            held = hold_out([str(index) for index in range(count)], labels, config.validation_fraction)
        else:
            for index, split in enumerate(splits):
                if split not in ("train", "validation"):
                    raise DataError(
                        f"split({index}) of {self._name} is {split!r}: "
                        "return 'train' or 'validation' for each image, or None for all"
                    )
            held = np.array([split == "validation" for split in splits])

        cache = PixelCache(config.cache_mb)

        def read(index: int) -> UInt8[np.ndarray, "h w 3"]:
            return halved(self._rgb(index, config), image_size)

        train, validation = (
            CroppedSet(chosen.tolist(), labels[chosen], image_size, config, cache, read)
            for chosen in (np.flatnonzero(~held), np.flatnonzero(held))
        )
        return Data(
            train,
            validation,
            class_names,
            fingerprint(
                source="images",
                content=self.fingerprint,
                labels=hashlib.sha256(labels.tobytes() + held.tobytes()).hexdigest(),
                class_names=class_names,
                background=config.background,
                **seen_options(config, image_size),
            ),
        )

    @property
    def _name(self) -> str:
        return f"the data source {type(self).__module__}:{type(self).__qualname__}"

    def _rgb(self, index: int, config: DataConfig) -> Image.Image:
        image = self.image(index)
        if isinstance(image, Image.Image):
            try:
                return upright_rgb(image, config.background)
            except DataError as error:
                raise DataError(f"image({index}) of {self._name}: {error}") from error
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3:
            return Image.fromarray(image)
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"image({index}) of {self._name} is {what}: return a Pillow image, or uint8 (height, width, 3)")


def embedded_name(where: str) -> str | None:
    """The name of the embedded images that `where` names, without options; None for other sources."""
    name = where.partition(":")[0]
    return name if name in EMBEDDED else None


# The name of a module must have two letters or more here, because C:photos is a path on Windows.
_OUTSIDE = re.compile(r"([A-Za-z_]\w+(?:\.\w+)*:[A-Za-z_][\w.]*)(:.*)?", re.DOTALL)


def _registered(where: str) -> tuple[str, str] | None:
    """The name in `SOURCES` and the text of the options, colon included; None for the path of a folder or zip."""
    name = embedded_name(where)
    if name is not None:
        return name, where.removeprefix(name)
    match = _OUTSIDE.fullmatch(where)
    return None if match is None or os.path.exists(where) else (match[1], match[2] or "")


def place_of(where: str) -> str:
    """`where` as it can be stored: a path is made absolute, a name is kept."""
    return where if _registered(where) is not None else str(Path(where).absolute())


def import_source(where: str) -> None:
    """Import the module of a source `module:Name` that the user typed. Never pass a name from a saved file.

    Raises `DataError` if there is no such module or name.
    """
    registered = _registered(where)
    if registered is not None:
        try:
            SOURCES.import_named(registered[0])
        except ConfigError as error:
            raise DataError(f"--data {where}: {error}; there is also no folder or zip of this name") from error


def source_of(where: str) -> Source:
    """The source that `--data WHERE` names, with its options. Imports no code from outside the package.

    Raises `DataError` for an unknown name, and for an option that is unknown, repeated, missing or impossible.
    """
    registered = _registered(where)
    if registered is None:
        return SOURCES.get("folder")(where)
    name, text = registered
    try:
        source: object = SOURCES.get(name)
        if callable(source):
            source = SOURCES.build(name, _typed(source, _pairs(text)))
    except (ConfigError, DataError) as error:
        raise DataError(f"--data {where}: {error}") from error
    if not isinstance(source, Source):
        raise DataError(f"--data {where}: {name} is no data source: derive it from prologue.data.source.ImageSource")
    return source


def open_data(where: str, config: DataConfig, image_size: tuple[int, int]) -> Data:
    """Open what `--data WHERE` names for images of `image_size` (rows, columns).

    Raises `DataError` if images or labels are missing, empty, damaged or contradictory, and `MissingExtraError` for
    `digits` without its extra. A folder with the name shapes is written as ./shapes.
    """
    return source_of(where).open(config, image_size)


def _pairs(text: str) -> dict[str, str]:
    """The options in `:key=value,…`."""
    given: dict[str, str] = {}
    for part in text[1:].split(",") if text else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise DataError(f"{part!r} is not an option of the form key=value")
        if key in given:
            raise DataError(f"the option {key!r} is given twice")
        given[key] = value
    return given


def _typed(component: Callable[..., Any], given: dict[str, str]) -> dict[str, Any]:
    """The values as the component's signature declares them: int, float, bool, a Literal of words, or text."""
    try:
        signature = inspect.signature(component, eval_str=True)
    except NameError:  # an annotation that is imported for type checkers only
        signature = inspect.signature(component)
    typed: dict[str, Any] = {}
    for key, text in given.items():
        declared = signature.parameters[key].annotation if key in signature.parameters else str
        words = get_args(declared) if get_origin(declared) is Literal else ("true", "false") if declared is bool else ()
        if words and text not in words:
            raise DataError(f"{key} must be one of {', '.join(words)}, not {text!r}")
        try:
            typed[key] = text == "true" if declared is bool else declared(text) if declared in (int, float) else text
        except ValueError as error:
            what = "a whole number" if declared is int else "a number"
            raise DataError(f"{key} must be {what}, not {text!r}") from error
    return typed


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise `DataError` if the option `name` is not from `low` to `high`."""
    if not low <= value <= high:
        raise DataError(f"{name} must be from {low:g} to {high:g}, not {value:g}")
