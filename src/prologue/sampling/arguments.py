"""What callers of the public interface give: whole numbers, seeds, options and images, checked in one place."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from prologue.data.pictures import fit, to_pil
from prologue.errors import ConfigError, DataError, SamplingError, UnknownOptionError, did_you_mean
from prologue.models.tokenizer import check_image_tensor, check_model_range, to_model_range, to_uint8
from prologue.utils.rng import check_seeds

Images = Image.Image | Sequence[Image.Image] | Tensor
"""Pictures of any size, or model-range tensors (3, H, W) or (B, 3, H, W)."""


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """A count of at least 1 and, where that is given, at most `most`; anything else is a `SamplingError` naming it."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise SamplingError(f"{name} must be a whole number of at least 1, not {value!r}")
    if most is not None and number > most:
        raise SamplingError(f"{name} must be at most {most}, not {value!r}")
    return number


def seeds_of(seed: Any, count: int) -> list[int]:
    """One seed for each of `count` images; of a single one, it and those that follow.

    Anything else than whole numbers of 64 bits with a sign, or a wrong number of them, is a `SamplingError`.
    """
    given = seed.tolist() if isinstance(seed, Tensor | np.ndarray) else seed
    try:
        if not isinstance(given, Sequence):
            first = operator.index(given)
            check_seeds(first, count)
            return list(range(first, first + count))
        seeds = [operator.index(value) for value in given]
    except TypeError as error:
        raise SamplingError(f"a seed is a whole number, or one for each image, not {seed!r}") from error
    if len(seeds) != count:
        raise SamplingError(f"{count} images need one seed, or one each, not {len(seeds)}")
    for each in seeds:
        check_seeds(each)
    return seeds


def check_options(given: Collection[str], known: Sequence[str]) -> None:
    """Raise `UnknownOptionError` for the first option that is not known, with the nearest one and the list."""
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UnknownOptionError(f"unknown option {name!r}: {hint}options are {', '.join(known)}")


def folder_path(path: Any) -> str | Path:
    """A path as text or `Path`; anything else is a `ConfigError`."""
    if isinstance(path, str | Path):
        return path
    if isinstance(path, os.PathLike):
        return Path(path)
    raise ConfigError(f"a model's folder is a path or builtin:NAME, not {path!r}")


def image_tensor(images: Images, size: tuple[int, int], background: tuple[int, int, int]) -> Float[Tensor, "B 3 H W"]:
    """Images as a tokenizer of this size (rows, columns) takes them; others are covered and center-cropped.

    What is no picture and no tensor, values that are not finite and values beyond ±2 are a `DataError`.
    """
    if isinstance(images, Tensor):
        x = images[None] if images.ndim == 3 else images
        check_image_tensor(x)
        check_model_range(x)
        if tuple(x.shape[2:]) == size and len(x):
            return x
        images = to_pil(to_uint8(x))
    given: Any = images
    single = isinstance(given, Image.Image | str | bytes | Path) or not hasattr(given, "__iter__")
    pictures = [given] if single else list(given)
    if not pictures:
        raise DataError("no image was given")
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise DataError(
                f"an image is a PIL image or a tensor, not {type(picture).__name__}: open files with PIL.Image.open, "
                "make a picture of an array with PIL.Image.fromarray"
            )
        if 0 in picture.size:
            raise DataError(f"an image of {picture.width} × {picture.height} pixels has nothing to encode")
    return to_model_range(torch.stack([fit(picture, size, background) for picture in pictures]))
