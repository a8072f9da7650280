"""The source for a folder or zip. It checks every image once, and holds images out by their split or name."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from prologue.config import DataConfig
from prologue.data.decode import Header, decode, read_header, require_readable_by_rule_1
from prologue.data.folder.listing import Listing, list_images
from prologue.data.folder.rules import rule_of
from prologue.data.folder.storage import Storage, open_storage
from prologue.data.names import natural_key, readable
from prologue.data.source import Data, FileRecord, fingerprint, seen_options
from prologue.data.splits import hold_out, place
from prologue.data.views import CroppedSet, PixelCache, halved
from prologue.errors import DataError

FULL_CHECK = 50_000
"""Largest number of images that are fully decoded when a source is opened. For more images only the headers are read,
unless damaged files are skipped."""
_HEAD = 1 << 15


@dataclass(frozen=True)
class Folder:
    """A folder or zip of images. It is read in place and never written to.

    Labels come from `labels.csv` (file,label) or `metadata.csv` (file_name,label), else from the names of the top
    subfolders. Top folders named after splits are splits. A zip whose files all lie in one top folder is read as that
    folder.
    """

    where: str

    def open(self, config: DataConfig, image_size: tuple[int, int]) -> Data:
        """Raises `DataError` if files are missing, damaged or contradictory; the message names them."""
        rule = rule_of(config)
        storage = open_storage(self.where, rule)
        listing = list_images(storage, self.where, rule)
        cache = PixelCache(config.cache_mb)
        scan = _Scan(storage, listing, config, image_size, cache)
        names = tuple(scan.headers)
        if not names:
            raise DataError(
                f"none of the {len(listing.names)} images in {readable(self.where)} can be read: "
                f"{next(iter(scan.damaged.values()), 'the labels name none')}"
            )
        label_of = {} if listing.labels is None else dict(zip(listing.names, listing.labels, strict=True))
        class_names = tuple(sorted({label_of[name] for name in names if label_of}, key=natural_key))
        ids = {label: number for number, label in enumerate(class_names)}
        labels = np.array([ids[label_of[name]] if label_of else 0 for name in names], dtype=np.int64)
        if listing.held_out is None:
            held, split = hold_out(names, labels, config.validation_fraction), {}
        else:
            held, split = np.array([name in listing.held_out for name in names]), {"splits": sorted(listing.held_out)}

        def read(name: str) -> UInt8[np.ndarray, "h w 3"]:
            return _read(storage, name, config, image_size)[0]

        def part(chosen: Bool[np.ndarray, " n"]) -> CroppedSet[str]:
            members = [names[index] for index in np.flatnonzero(chosen)]
            return CroppedSet(members, labels[chosen], image_size, config, cache, read)

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
            notes=(*listing.notes, *scan.notes(), *_single_images(labels, class_names, listing, config)),
            left_out=(*listing.left_out, *damaged),
            file_rule=rule.number,
            files=tuple(FileRecord(name, storage.sizes[name], label_of.get(name)) for name in names),
            content=fingerprint(files=[[name, storage.stamps[name]] for name in names]),
        )


def _read(
    storage: Storage, name: str, config: DataConfig, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], Header]:
    """The halved picture, and the header of its file."""
    image, has_frames = decode(storage.read(name), storage.shown(name), config.background, config.max_pixels)
    return halved(image, size), Header((image.height, image.width), has_frames)


class _Scan:
    """Reads every image once and fills the cache with those that will train.

    Raises `DataError` for the first damaged image, unless `data.skip_damaged`.
    """

    headers: dict[str, Header]
    """In the order of the listing."""
    damaged: dict[str, DataError]

    def __init__(
        self, storage: Storage, listing: Listing, config: DataConfig, size: tuple[int, int], cache: PixelCache
    ) -> None:
        self._storage, self._listing, self._config, self._size, self._cache = storage, listing, config, size, cache
        self._whole = len(listing.names) <= FULL_CHECK or config.skip_damaged
        self.headers, self.damaged = {}, {}
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            for name, found in zip(listing.names, pool.map(self._look, listing.names), strict=True):
                if not isinstance(found, DataError):
                    self.headers[name] = found
                elif config.skip_damaged:
                    self.damaged[name] = found
                else:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise found

    def _look(self, name: str) -> Header | DataError:
        try:
            if self._config.skip_damaged and rule_of(self._config).first:
                require_readable_by_rule_1(self._storage.read(name), self._storage.shown(name))
            if not self._whole:
                return self._header(name)
            picture, header = _read(self._storage, name, self._config, self._size)
        except DataError as error:
            return error
        held_out = self._listing.held_out
        if name not in held_out if held_out is not None else place(name) >= self._config.validation_fraction:
            self._cache.put(name, picture)
        return header

    def _header(self, name: str) -> Header:
        """The header, from the beginning of a file, or from the whole file if the beginning is not enough."""
        shown, limit = self._storage.shown(name), self._config.max_pixels
        try:
            return read_header(self._storage.head(name, _HEAD), shown, limit)
        except DataError:
            return read_header(self._storage.read(name), shown, limit)

    def notes(self) -> list[str]:
        """Sentences on damaged, small and animated files."""
        notes, count = [], len(self.headers)
        if self.damaged:
            listed = ", ".join(map(self._storage.shown, self.damaged))
            notes.append(f"Skipped {len(self.damaged)} damaged files: {listed}.")
        rows, columns = self._size
        small = sum(header.size[0] < rows or header.size[1] < columns for header in self.headers.values())
        if small:
            notes.append(
                f"{small} of {count} images are smaller than {rows} × {columns} (rows × columns) and are enlarged."
            )
        frames = [name for name, header in self.headers.items() if header.has_frames]
        if frames:
            notes.append(
                f"{len(frames)} of {count} files hold several frames or pages; only the first is used "
                f"(for example {readable(frames[0])})."
            )
        return notes


def _single_images(
    labels: Int64[np.ndarray, " n"], class_names: tuple[str, ...], listing: Listing, config: DataConfig
) -> list[str]:
    """A sentence on classes with only one image, if images were held out by name."""
    counts = np.bincount(labels, minlength=len(class_names))
    single = [name for name, count in zip(class_names, counts, strict=False) if count == 1]
    if not single or config.validation_fraction == 0 or listing.held_out is not None:
        return []
    return [f"Classes with only one image are used for training and not for validation: {', '.join(single)}."]
