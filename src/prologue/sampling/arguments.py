"""Checks the arguments of `Pipeline`: whole numbers, seeds, options and images."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from prologue.data.pictures import fit, to_pil
from prologue.errors import ConfigError, DataError, SamplingError, UnknownOptionError, did_you_mean
from prologue.models.tokenizer import check_image_tensor, check_model_range, to_model_range, to_uint8
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import check_seeds

Images = Image.Image | Sequence[Image.Image] | Tensor
"""Pictures of any size, or model-range tensors (3, H, W) or (B, 3, H, W)."""


class InTurn(Enum):
    """The default of `classes`. It differs from None, which is the null class."""

    IN_TURN = "the classes in turn"


IN_TURN: Final = InTurn.IN_TURN


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; options that are left out come from the stored recipe.

    Each option is one value for all images, or a sequence with one for each image. `prologue_temperature=None` means
    `temperature`; `top_k` and `top_p` None keep all ids.
    """

    guidance: Guidance | Sequence[Guidance]
    temperature: float | Sequence[float]
    prologue_temperature: float | Sequence[float | None] | None
    top_k: int | Sequence[int | None] | None
    top_p: float | Sequence[float | None] | None


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """Check for a whole number from 1 to `most`. Anything else raises a `SamplingError` with its name."""
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
    """A seed for each of `count` images; a single seed `s` means `s, s+1, …`.

    Raises:
        SamplingError: a seed is not a signed 64-bit integer, or the number of seeds is wrong.
    """
    given = _plain(seed)
    try:
        if not isinstance(given, Sequence):
            first = operator.index(given)
            check_seeds(first, count)
            return list(range(first, first + count))
        seeds = [operator.index(value) for value in given]
    except TypeError as error:
        raise SamplingError(f"a seed is a whole number, or one for each image, not {seed!r}") from error
    if len(seeds) != count:
        raise SamplingError(f"{count} images need one seed for all, or one for each, not {len(seeds)}")
    for each in seeds:
        check_seeds(each)
    return seeds


def recipes_of(stored: Recipe, options: Mapping[str, Any], count: int) -> list[Recipe]:
    """The recipe of each of `count` images: `stored`, changed by options with one value, or one for each image.

    Raises:
        SamplingError: a value is impossible, or the number of values is wrong.
    """
    given = {name: _plain(value) for name, value in options.items()}
    each = {name for name, value in given.items() if isinstance(value, Sequence) and not isinstance(value, str)}
    for name in each:
        if len(given[name]) != count:
            raise SamplingError(f"{count} images need one {name} for all, or one for each, not {len(given[name])}")
    if not each:
        return [stored.replace(**given)] * count
    return [
        stored.replace(**{name: value[number] if name in each else value for name, value in given.items()})
        for number in range(count)
    ]


def _plain(value: Any) -> Any:
    """Tensors and arrays as numbers or lists."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else value


def check_options(given: Collection[str], known: Sequence[str]) -> None:
    """Raise `UnknownOptionError` for the first unknown option; the message has the nearest one and the list."""
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UnknownOptionError(f"unknown option {name!r}: {hint}options are {', '.join(known)}")


def folder_path(path: Any) -> str | Path:
    """The path of a str or `Path`. Anything else raises a `ConfigError`."""
    if isinstance(path, str | Path):
        return path
    if isinstance(path, os.PathLike):
        return Path(path)
    raise ConfigError(f"a model's folder is a path or builtin:NAME, not {path!r}")


def image_tensor(images: Images, size: tuple[int, int], background: tuple[int, int, int]) -> Float[Tensor, "B 3 H W"]:
    """Images as the model's tensors of `size` (rows, columns); others are resized to cover it and center-cropped.

    Raises:
        DataError: a value is neither a picture nor a tensor, is not finite, or lies outside ±2.
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
            raise DataError(f"an image of {picture.width} × {picture.height} pixels is empty")
    return to_model_range(torch.stack([fit(picture, size, background) for picture in pictures]))
