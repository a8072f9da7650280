"""What the kinds share: their options, what a prepared measurement is, rows of its table and facts of its origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from PIL import Image
from tyro.conf import Positional, arg

from prologue import builtin
from prologue.commands._options import DeviceOption, JsonOption, SeedOption
from prologue.config import RunConfig
from prologue.errors import ConfigError
from prologue.evaluation.runs import Record, RunImages, RunInfo

Row = tuple[str, str, str]
"""A measure, its figure, its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every kind takes."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder, an imported one, or builtin:NAME."""
    data: Annotated[str | None, arg(metavar="WHERE")] = None
    """Images to measure on, as `prologue train` takes them; of others than those of the training all are measured.
    Left out: those of the training."""
    seed: SeedOption = 0
    batch: int = 64
    """Images computed at once: bounds the memory."""
    device: DeviceOption = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the models."""
    again: bool = False
    """Measure anew what the run's folder already holds."""
    json: JsonOption = None


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions(Options):
    count: int | None = None
    """So many of the held-out or given images, at random. Left out: all."""


OptionsT = TypeVar("OptionsT", bound=Options)

FeaturesOption = Annotated[
    str,
    arg(
        metavar="FEATURES",
        help="Features of the distances: lite0 (extra [lite0]); shapes or plates, the classifier of these embedded "
        "images; inception (extra [fid]), the only ones called FID; module:function, your own. "
        "auto takes lite0 where it is installed.",
    ),
]
InceptionOption = Annotated[
    Path | None, arg(metavar="FILE", help="Weights of Inception. Left out: torch's cache, else a download into it.")
]


class Measurement(NamedTuple):
    """What was found: named figures, and pictures of them by name."""

    record: Record
    pictures: Mapping[str, Image.Image] = {}


@dataclass(frozen=True)
class Prepared:
    """A measurement whose options are checked and whose models and images are open, not yet made."""

    options: Options
    facts: dict[str, Any]
    """What the figures depend on beside the options: weights, images, features. Stated in their provenance."""
    measure: Callable[[], Measurement] = field(repr=False)
    after: Callable[[Record], None] | None = field(default=None, repr=False)
    """What follows from the record, once it is kept or was found again."""
    anew: bool = False
    """Measure even what the run's folder holds: a file that the measurement leaves beside its figures is not there."""


def checked(options: OptionsT) -> OptionsT:
    """The options, with counts and batches of at least 1 and the run's own folder."""
    for name in ("batch", "count"):
        value: int | None = getattr(options, name, None)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, not {value}")
    return dataclasses.replace(options, run=builtin.locate(options.run))


def training_of(info: RunInfo) -> RunConfig:
    """How the run was trained; the defaults where its folder does not say."""
    return info.config if info.config is not None else RunConfig()


def facts(info: RunInfo, options: Options, images: RunImages | None, device: torch.device) -> dict[str, Any]:
    """What the figures' provenance states beside command, versions and machine."""
    return {
        "run": builtin.shown(info.path),
        "weights": info.weights,
        "data": None if images is None else images.source,
        "data_fingerprint": None if images is None else images.data.fingerprint,
        "seed": options.seed,
        "batch": options.batch,
        "device": str(device),
        "dtype": options.dtype,
    }


def with_notes(record: Record, notes: tuple[str, ...]) -> Record:
    """The record with these notes before its own."""
    return record | {"notes": [*notes, *record["notes"]]}


def row(label: str, record: Record, name: str, style: str) -> Row:
    """A figure of the record with its interval `name_low … name_high`."""
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    interval = "" if low is None else f"{low:{style}} … {high:{style}}"
    return label, f"{record[name]:{style}}", interval


SPLIT_WORDS = {"validation": "held-out", "train": "training", "given": "given"}
"""What images of a record's split are called."""


def images_sentence(record: Record) -> str:
    """How many images of which split the figures are of."""
    return f"N = {record['n']} {SPLIT_WORDS[record['split']]} images."


def last_sentences(record: Record) -> Iterator[str]:
    """What was noticed while measuring."""
    for sentence in record["notes"]:
        yield f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."
