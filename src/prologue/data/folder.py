"""A user's images: a folder or a zip, one subfolder per class, flat, or labelled by a table; split or to be split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from prologue.config import DataConfig
from prologue.data import crops
from prologue.data.cache import PixelCache
from prologue.data.decode import Header, decode, read_header, require_readable_by_rule_1
from prologue.data.listing import Listing, list_images
from prologue.data.names import name_bytes, natural_key, readable
from prologue.data.rules import rule_of
from prologue.data.source import Data, FileRecord, fingerprint, seen_options
from prologue.data.storage import Storage, open_storage
from prologue.errors import DataError

FULL_CHECK = 50_000
"""Up to so many images, opening decodes every one; above, it reads their headers (unless damaged ones are skipped)."""
_HEAD = 1 << 15


class FolderSet:
    """An `ImageSet` over files. Decoded pictures are kept, already halved, while they fit in the cache."""

    def __init__(
        self,
        storage: Storage,
        names: Sequence[str],
        labels: Int64[np.ndarray, " n"],
        size: tuple[int, int],
        config: DataConfig,
        cache: PixelCache,
    ) -> None:
        self.names = tuple(names)
        self.labels = labels
        self.size = size
        self.views = crops.token_view_count(config.token_views == "ten-crop", config.flip)
        self._storage = storage
        self._config = config
        self._cache = cache

    def __len__(self) -> int:
        return len(self.names)

    def center_view(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        """The center crop of METHOD §2."""
        return crops.pixels(crops.center_crop(self._picture(index), self.size))

    def train_view(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "3 H W"]:
        """A random or center crop (`data.crop`), mirrored by chance (`data.flip`)."""
        picture = self._picture(index)
        if self._config.crop == "random":
            view = crops.pixels(crops.random_crop(picture, self.size, rng))
        else:
            view = crops.pixels(crops.center_crop(picture, self.size))
        return crops.flip_maybe(view, rng) if self._config.flip else view

    def token_views(self, index: int) -> UInt8[np.ndarray, "V 3 H W"]:
        """Ten-crop or the center crop (`data.token_views`), then the mirror images if `data.flip`."""
        if self._config.token_views == "ten-crop":
            larger = crops.center_crop(self._picture(index), crops.ten_crop_size(self.size))
            views = crops.five_windows(crops.pixels(larger), self.size)
        else:
            views = self.center_view(index)[None]
        return crops.with_flips(views) if self._config.flip else views

    def _picture(self, index: int) -> Image.Image:
        name = self.names[index]
        return Image.fromarray(self._cache.get(name, lambda: _read(self._storage, name, self._config, self.size)[0]))


def _read(
    storage: Storage, name: str, config: DataConfig, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], Header]:
    """The picture as far halved as every crop allows, and what its file says of it."""
    image, has_frames = decode(storage.read(name), storage.shown(name), config.background, config.max_pixels)
    halved = crops.halve(image, crops.largest_random(size))
    return np.array(halved), Header((image.height, image.width), has_frames)


def _header(storage: Storage, name: str, config: DataConfig) -> Header:
    """What the beginning of an image file says, or all of it where that does not say."""
    try:
        return read_header(storage.head(name, _HEAD), storage.shown(name), config.max_pixels)
    except DataError:
        return read_header(storage.read(name), storage.shown(name), config.max_pixels)


@dataclass(frozen=True)
class _Scan:
    """What opening found in each image: what its header says, or the error."""

    headers: dict[str, Header]
    damaged: dict[str, DataError]


def _scan(storage: Storage, listing: Listing, config: DataConfig, size: tuple[int, int], cache: PixelCache) -> _Scan:
    """Read every image once, filling the cache with those that will train. Stops at the first damaged one, or skips."""
    names, held_out = listing.names, listing.held_out
    whole = len(names) <= FULL_CHECK or config.skip_damaged
    strict = config.skip_damaged and rule_of(config).first

    def trains(name: str) -> bool:
        return name not in held_out if held_out is not None else _place(name) >= config.validation_fraction

    def look(name: str) -> Header | DataError:
        try:
            if strict:
                require_readable_by_rule_1(storage.read(name), storage.shown(name))
            if not whole:
                return _header(storage, name, config)
            picture, header = _read(storage, name, config, size)
        except DataError as error:
            return error
        if trains(name):
            cache.put(name, picture)
        return header

    scan = _Scan({}, {})  # in the order of the names
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for name, found in zip(names, pool.map(look, names), strict=True):
            if not isinstance(found, DataError):
                scan.headers[name] = found
            elif config.skip_damaged:
                scan.damaged[name] = found
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise found
    return scan


def _place(name: str) -> float:
    """A name's own number in [0, 1): below the validation fraction it is held out."""
    return int.from_bytes(hashlib.sha256(name_bytes(name)).digest()[:8], "big") / 2**64


def split_names(names: Sequence[str], labels: Int64[np.ndarray, " n"], part: float) -> Bool[np.ndarray, " n"]:
    """True for held-out images: those whose name's hash lies below `part`, so that added files move no other.

    Every class of two images or more keeps at least one on either side (for `part` > 0); a class of one trains.
    """
    places = np.array([_place(name) for name in names])
    held = places < part
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) == 1 or part == 0:
            held[members] = False
        elif not held[members].any():
            held[members[places[members].argmin()]] = True
        elif held[members].all():
            held[members[places[members].argmax()]] = False
    return held


def open_folder(where: str, config: DataConfig, image_size: tuple[int, int]) -> Data:
    """Open a folder or a zip of images; it is read in place and never written to.

    Labels: `labels.csv` (file,label) or `metadata.csv` (file_name,label), else the names of the top subfolders, else
    none. Top folders named after splits are splits. A zip whose files all lie in one top folder is read as that
    folder. Raises `DataError` naming what is missing, damaged or contradictory.
    """
    rule = rule_of(config)
    storage = open_storage(where, rule)
    listing = list_images(storage, where, rule)
    cache = PixelCache(config.cache_mb)
    scan = _scan(storage, listing, config, image_size, cache)
    if not scan.headers:
        raise DataError(
            f"none of the {len(listing.names)} images in {readable(where)} can be read: "
            f"{next(iter(scan.damaged.values()), 'the labels name none')}"
        )

    names = tuple(scan.headers)
    label_of = dict(zip(listing.names, listing.labels, strict=True)) if listing.labels is not None else {}
    class_names = tuple(sorted({label_of[name] for name in names if label_of}, key=natural_key))
    ids = {label: number for number, label in enumerate(class_names)}
    labels = np.array([ids[label_of[name]] if label_of else 0 for name in names], dtype=np.int64)
    if listing.held_out is None:
        held, split = split_names(names, labels, config.validation_fraction), {}
    else:
        held, split = np.array([name in listing.held_out for name in names]), {"splits": sorted(listing.held_out)}

    def part(chosen: Bool[np.ndarray, " n"]) -> FolderSet:
        members = [names[index] for index in np.flatnonzero(chosen)]
        return FolderSet(storage, members, labels[chosen], image_size, config, cache)

    damaged = [f"{len(scan.damaged)} damaged"] if scan.damaged else []
    return Data(
        train=part(~held),
        validation=part(held),
        class_names=class_names,
        fingerprint=fingerprint(
            source="files",
            files=[[name, storage.sizes[name], int(label)] for name, label in zip(names, labels, strict=True)],
            class_names=class_names,
            background=config.background,
            validation=config.validation_fraction,
            **split,
            **seen_options(config, image_size),
        ),
        notes=(*listing.notes, *_notes(storage, scan, labels, class_names, listing, config, image_size)),
        left_out=(*listing.left_out, *damaged),
        file_rule=rule.number,
        files=tuple(FileRecord(name, storage.sizes[name], label_of.get(name)) for name in names),
        content=fingerprint(files=[[name, storage.stamps[name]] for name in names]),
    )


def _notes(
    storage: Storage,
    scan: _Scan,
    labels: Int64[np.ndarray, " n"],
    class_names: tuple[str, ...],
    listing: Listing,
    config: DataConfig,
    size: tuple[int, int],
) -> list[str]:
    """What the user should know about these images, a sentence each."""
    notes = []
    if scan.damaged:
        listed = ", ".join(storage.shown(name) for name in scan.damaged)
        notes.append(f"Skipped {len(scan.damaged)} damaged files: {listed}.")
    sizes = [header.size for header in scan.headers.values()]
    smaller = sum(rows < size[0] or columns < size[1] for rows, columns in sizes)
    if smaller:
        notes.append(
            f"{smaller} of {len(labels)} images are smaller than {size[0]} × {size[1]} (rows × columns) "
            "and are enlarged."
        )
    frames = [name for name, header in scan.headers.items() if header.has_frames]
    if frames:
        notes.append(
            f"{len(frames)} of {len(labels)} files hold several frames or pages, of which the first is taken "
            f"(for example {readable(frames[0])})."
        )
    counts = np.bincount(labels, minlength=len(class_names))
    single = [name for name, count in zip(class_names, counts, strict=False) if count == 1]
    if single and config.validation_fraction > 0 and listing.held_out is None:
        notes.append(f"Classes of one image train and are absent from validation: {', '.join(single)}.")
    return notes
