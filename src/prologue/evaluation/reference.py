"""References of distances: ADM's `.npz` of statistics and images, and the JSON file beside it that describes it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from prologue._version import __version__
from prologue.data.pictures import SampleArchive
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.metrics.frechet import GaussianStatistics, Moments
from prologue.models.weights import file_hash
from prologue.utils.files import atomic_write
from prologue.utils.processes import Processes
from prologue.utils.serialization import from_dict, load_json, save_json, to_dict

WANTED = "`mu` and `sigma`, or `arr_0` (uint8 images, N x H x W x 3), or all three"


class Views(Protocol):
    """Images that are read on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "3 h w"]: ...


@dataclass(frozen=True, kw_only=True)
class ReferenceCard:
    """The JSON file beside a reference."""

    features: str
    """Name of the features of the statistics."""
    features_hash: str | None
    image_size: tuple[int, int]
    """Rows and columns of the images."""
    split: str
    """`train` or `validation`."""
    count: int
    """Number of images of the statistics."""
    data_fingerprint: str | None
    sha256: str
    """Hash of the `.npz` file."""
    features_source: str | None = None
    """`FeatureExtractor.source`: the code of features from outside the package."""
    prologue: str = __version__
    torch: str = field(default_factory=lambda: version("torch"))


@dataclass(frozen=True)
class Reference:
    """An opened reference. Without a card, features and split are declared by the caller."""

    path: Path
    sha256: str
    card: ReferenceCard | None
    features: str | None
    split: str
    moments: Moments | None
    images_shape: tuple[int, int, int] | None
    """Number, rows and columns of its images, if it has any."""

    @property
    def count(self) -> int | None:
        """Number of images of the statistics; None if unknown."""
        if self.card is not None:
            return self.card.count
        return None if self.moments is not None or self.images_shape is None else self.images_shape[0]

    def require(self, extractor: Any, image_size: tuple[int, int], split: str) -> None:
        """Raise `EvaluationError` for a reference of other features, another size or another split."""
        name = extractor.name
        if self.moments is not None:
            if (self.features or "").lower() != name.lower():
                raise EvaluationError(
                    f"{self.path} has statistics of the features {self.features}, and the measurement is in {name}: "
                    f"name those features with --features, or give a reference of {name}"
                )
            for what, own, attribute in (
                ("weights", extractor.hash, "features_hash"),
                ("code", getattr(extractor, "source", None), "features_source"),
            ):
                theirs = getattr(self.card, attribute, None)
                if None not in (theirs, own) and theirs != own:
                    raise EvaluationError(
                        f"{self.path} was made with other {what} of {name} ({theirs}) than those of the measurement "
                        f"({own}): make the reference again"
                    )
            dimension, own = len(self.moments.mean), extractor.dimension
            if own is not None and own != dimension:
                raise EvaluationError(f"{self.path} has {dimension} features per image, and {name} has {own}")
        sizes = [] if self.card is None else [self.card.image_size]
        sizes += [] if self.images_shape is None else [self.images_shape[1:]]
        for size in sizes:
            if tuple(size) != tuple(image_size):
                raise EvaluationError(
                    f"{self.path} has images of {size[0]}x{size[1]} px, and the measurement has "
                    f"{image_size[0]}x{image_size[1]} px: give a reference of the same size"
                )
        if self.split != split:
            raise EvaluationError(
                f"{self.path} has {self.split} images, and this measurement is against {split} images: give a "
                "reference of those"
            )

    def batches(self, batch: int, processes: Processes) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
        """The images of this process in batches, read from the file."""
        if self.images_shape is None:
            return
        count, *size = self.images_shape
        each = size[0] * size[1] * 3
        with _member(self.path, "arr_0") as file:
            _, fortran, _ = _read_header(file)
            if fortran:  # the pixels of an image are scattered over the file
                images = _whole_images(self.path)
                for start in processes.share(range(0, count, batch)):
                    pixels = np.ascontiguousarray(images[start : start + batch].transpose(0, 3, 1, 2))
                    yield torch.from_numpy(pixels)
                return
            begin = file.tell()
            for start in processes.share(range(0, count, batch)):
                file.seek(begin + start * each)
                rows = min(batch, count - start)
                pixels = np.frombuffer(file.read(rows * each), dtype=np.uint8).reshape(rows, *size, 3)
                yield torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).contiguous()

    def facts(self) -> dict[str, Any]:
        """What figures against it depend on."""
        return {
            "reference": str(self.path),
            "reference_sha256": self.sha256,
            "reference_features": self.features,
            "reference_split": self.split,
            "reference_declared": self.card is None,
            "reference_fingerprint": None if self.card is None else self.card.data_fingerprint,
        }


def card_path(path: Path) -> Path:
    """The JSON file beside a reference."""
    return path.with_suffix(".json")


def open_reference(path: Path, features: str | None = None, split: str | None = None) -> Reference:
    """Open an `.npz` in ADM's format; `features` and `split` describe a file without a JSON file beside it.

    Pickles are not read, and `mu_s` and `sigma_s` (spatial features) are ignored. An `EvaluationError` is raised
    for a file that is missing or damaged, has other keys, does not fit its JSON file, or is not described at all.
    """
    if not path.is_file():
        raise EvaluationError(f"{path} is not a file: --reference needs an .npz in ADM's format")
    moments, shape = _read(path)
    digest = file_hash(path)
    if card_path(path).is_file():
        card = _read_card(path, digest)
        for what, declared, known in (("features", features, card.features), ("split", split, card.split)):
            if declared is not None and declared.lower() != known.lower():
                raise EvaluationError(f"{card_path(path)} says {what} {known}, and --reference-{what} {declared}")
        return Reference(path, digest, card, card.features, card.split, moments, shape)
    missing = [] if features is not None or moments is None else ["--reference-features F (such as inception)"]
    missing += [] if split is not None else ["--reference-split train or validation"]
    if missing or split is None:
        raise EvaluationError(
            f"{path} has no {card_path(path).name} beside it that describes it: declare {' and '.join(missing)}"
        )
    return Reference(path, digest, None, features if moments is not None else None, split, moments, shape)


def write_reference(
    path: Path,
    statistics: GaussianStatistics,
    images: Views | None = None,
    *,
    features: str,
    features_hash: str | None,
    image_size: tuple[int, int],
    split: str,
    data_fingerprint: str | None,
    features_source: str | None = None,
) -> ReferenceCard:
    """Write `mu`, `sigma` and, with images, `arr_0`, one image at a time, and the JSON file."""
    arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy()}
    card_path(path).unlink(missing_ok=True)  # it does not describe the new file
    if images is None:
        with atomic_write(path) as file:
            np.savez(file, mu=arrays["mu"], sigma=arrays["sigma"])
    else:
        with SampleArchive(path, len(images), image_size) as archive:
            for index in range(len(images)):
                archive.add(images[index].transpose(1, 2, 0)[None])
            archive.finish(**arrays)
    card = ReferenceCard(
        features=features,
        features_hash=features_hash,
        image_size=image_size,
        split=split,
        count=statistics.count,
        data_fingerprint=data_fingerprint,
        features_source=features_source,
        sha256=file_hash(path),
    )
    save_json(card_path(path), to_dict(card))
    return card


def _read_card(path: Path, digest: str) -> ReferenceCard:
    beside = card_path(path)
    try:
        card = from_dict(ReferenceCard, load_json(beside))
    except ConfigError as error:
        raise EvaluationError(
            f"{beside} does not describe a reference ({error}): make both again with `prologue evaluate reference`, "
            "or remove it and declare --reference-features and --reference-split"
        ) from error
    if card.sha256 != digest:
        raise EvaluationError(
            f"{path} is not the file that {beside} describes: its sha256 is {digest[:12]}…, not {card.sha256[:12]}…"
        )
    return card


def _read(path: Path) -> tuple[Moments | None, tuple[int, int, int] | None]:
    """The moments and the shape of the images, at least one of them."""
    try:
        # Opened here, because numpy does not close a damaged zip file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = list(archive.keys()) if hasattr(archive, "keys") else []
            moments = _moments(archive["mu"], archive["sigma"], path) if {"mu", "sigma"} <= set(keys) else None
        shape = _images_shape(path) if "arr_0" in keys else None
    except EvaluationError:
        raise
    except Exception as error:  # zip, header and pickle errors of many kinds
        raise EvaluationError(f"{path} cannot be read as an .npz ({error}): it must hold {WANTED}") from error
    if moments is None and shape is None:
        raise EvaluationError(f"{path} has the keys {', '.join(sorted(keys)) or 'none'}; a reference holds {WANTED}")
    return moments, shape


def _moments(mean: np.ndarray, covariance: np.ndarray, path: Path) -> Moments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise EvaluationError(
            f"{path}: mu must be (d,) and sigma (d, d), and they are {mean.shape} and {covariance.shape}"
        )
    values: list[Float64[Tensor, " _"]] = [
        torch.from_numpy(np.asarray(part, np.float64)) for part in (mean, covariance)
    ]
    if not all(bool(value.isfinite().all()) for value in values):
        raise EvaluationError(f"{path}: mu or sigma has NaN or infinity: make the reference again")
    return Moments(values[0], values[1])


def _images_shape(path: Path) -> tuple[int, int, int]:
    with _member(path, "arr_0") as file:
        shape, _, dtype = _read_header(file)
    if dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and 0 not in shape:
        return shape[0], shape[1], shape[2]
    raise EvaluationError(
        f"{path}: arr_0 must be uint8 images of shape (N, H, W, 3), and {_image_fault(shape, dtype)}: write it again"
    )


def _image_fault(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """Why an array cannot be images."""
    if dtype != np.uint8:
        return f"its values are {dtype}, not whole numbers 0 to 255 (uint8)"
    if len(shape) == 4 and shape[1] == 3:
        return f"its shape {shape} has the channels before rows and columns"
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        return f"its shape {shape} is that of grey images, or of a single one"
    if len(shape) == 4 and shape[3] == 4:
        return f"its shape {shape} has a channel of transparency"
    if 0 in shape:
        return f"its shape {shape} holds no pixels"
    return f"its shape is {shape}"


def _whole_images(path: Path) -> UInt8[np.ndarray, "n h w 3"]:
    with np.load(path, allow_pickle=False) as archive:
        images: UInt8[np.ndarray, "n h w 3"] = archive["arr_0"]
    return images


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        yield file


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; the file position is then that of the first value."""
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    return header
