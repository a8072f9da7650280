"""What the kinds share: their options, what a prepared measurement is, rows of its table and facts of its origin."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import torch
from PIL import Image
from tyro.conf import Positional, arg

from prologue import builtin
from prologue.config import RunConfig
from prologue.data.source import import_source
from prologue.errors import ConfigError
from prologue.evaluation.runs import Record, RunImages, RunInfo
from prologue.training.models import Which
from prologue.utils.launcher import launched
from prologue.utils.options import LOCATION, DeviceOption, JsonOption, SeedOption

Row = tuple[str, str, str]
"""A measure, its figure, its 95 % interval."""


@dataclass(frozen=True)
class NoFigure:
    """Marks an option that changes no figure, beyond the rounding of other batches."""


@dataclass(frozen=True)
class StatedBy:
    """Marks an option that counts by what it names: these facts hold the content, however it was written."""

    facts: tuple[str, ...]

    def __init__(self, *facts: str) -> None:
        object.__setattr__(self, "facts", facts)


_BY_DATA = StatedBy("data", "data_fingerprint", "data_content", "data_own")
BY_FEATURES = StatedBy("features", "features_hash", "features_source")


@dataclass(frozen=True)
class Told:
    """A fact that is told with the figures and that they do not depend on, such as the path of a hashed file."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every kind takes. Figures are found again by the value of every option, unless it is marked otherwise."""

    run: Annotated[Positional[Path], arg(metavar="RUN"), StatedBy("weights", "configs", "manifest")]
    """A run's folder, an imported one, or builtin:NAME."""
    data: Annotated[str | None, arg(metavar="WHERE"), LOCATION, _BY_DATA] = None
    """Images to measure on, as `prologue train` takes them; of others than those of the training all are measured.
    Left out: those of the training."""
    seed: SeedOption = 0
    batch: Annotated[int, NoFigure()] = 64
    """Images computed at once: bounds the memory."""
    device: Annotated[DeviceOption, StatedBy("device")] = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the models."""
    checkpoint: Annotated[Which, StatedBy("weights", "configs")] = "finished"
    """Models to measure: finished ones, or, of a run that is still training, the EMA of its newest checkpoint."""
    again: Annotated[bool, NoFigure()] = False
    """Measure anew what the run's folder already holds."""
    json: Annotated[JsonOption, NoFigure()] = None

    def open_data(self, info: RunInfo, image_size: tuple[int, int]) -> RunImages:
        """The images to measure on; one process of a group says what they are. Errors as `RunInfo.open_data`."""
        if self.data is not None:
            import_source(self.data)
        opened = info.open_data(self.data, image_size)
        if launched().main:
            print(opened.data.summary(opened.source), file=sys.stderr, flush=True)
        return opened


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
    BY_FEATURES,
]
InceptionOption = Annotated[
    Path | None,
    arg(metavar="FILE", help="Weights of Inception. Left out: those of `prologue weights inception`, or torch's."),
    BY_FEATURES,
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
    """What the figures depend on beside the options: weights, images, features; what is only `Told` does not count.
    All are stated in their provenance."""
    measure: Callable[[], Measurement] = field(repr=False)
    after: Callable[[Record], None] | None = field(default=None, repr=False)
    """What follows from the record, once it is kept or was found again."""
    writes: Path | None = None
    """A file that the measurement leaves beside its figures."""
    anew: bool = False
    """Measure even what the run's folder holds: a file that the measurement leaves beside its figures is not there."""

    @property
    def counted(self) -> dict[str, Any]:
        """Options and facts that the figures depend on. Of an option marked `StatedBy` its facts must be there."""
        hints = get_type_hints(type(self.options), include_extras=True)
        options = {}
        for each in dataclasses.fields(self.options):
            value, marks = getattr(self.options, each.name), getattr(hints[each.name], "__metadata__", ())
            stated = [name for mark in marks if isinstance(mark, StatedBy) for name in mark.facts]
            lacking = [name for name in stated if name not in self.facts]
            assert value is None or not lacking, f"figures depend on --{each.name}, and no fact states {lacking}"
            if not stated and not any(isinstance(mark, NoFigure) for mark in marks):
                options[each.name] = value
        facts = {name: value for name, value in self.facts.items() if not isinstance(value, Told)}
        return {"options": options, "facts": facts}

    @property
    def stated(self) -> dict[str, Any]:
        """All facts, as the provenance has them."""
        return {name: value.value if isinstance(value, Told) else value for name, value in self.facts.items()}


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
    no_images = {"data": None, "data_fingerprint": None, "data_content": None, "data_own": None}
    return {
        "run": Told(builtin.shown(info.path)),
        **info.facts(),
        **info.source.facts,
        **(no_images if images is None else images.facts()),
        "seed": options.seed,
        "batch": Told(options.batch),
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
