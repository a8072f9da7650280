"""What a kind of evaluation is, and what kinds share: options, the opened run, rows of a table, common sentences."""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TextIO, TypeVar, get_type_hints

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from tyro.conf import Positional, arg

from prologue import builtin
from prologue.config import RunConfig
from prologue.data.source import import_source
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.runs import Record, RunImages, RunInfo, choose_images, true_classes
from prologue.models.precision import pick_dtype
from prologue.models.tokenizer import Tokenizer
from prologue.pipeline import Pipeline
from prologue.training.models import Which
from prologue.utils.device import pick_device
from prologue.utils.launcher import launched
from prologue.utils.options import LOCATION, DeviceOption, JsonOption, SeedOption

Row = tuple[str, str, str]
"""A row of a table: label, value, 95 % interval."""


@dataclass(frozen=True)
class NoFigure:
    """Marks an option that changes no figure, except for rounding in batches of another size."""


@dataclass(frozen=True)
class StatedBy:
    """Marks an option whose content is in these facts: they identify the figures, not the option's spelling."""

    facts: tuple[str, ...]

    def __init__(self, *facts: str) -> None:
        object.__setattr__(self, "facts", facts)


@dataclass(frozen=True)
class ProvenanceOnly:
    """A fact of the provenance that figures do not depend on, such as the path of a hashed file."""

    value: Any


BY_FEATURES = StatedBy("features", "features_hash", "features_source")
FeaturesOption = Annotated[
    str,
    arg(
        metavar="FEATURES",
        help="Feature network of the distances: lite0 (extra [lite0]); shapes or plates, the classifier of these "
        "embedded images; inception (extra [fid]), with the published names FID, KID and IS; or your own "
        "module:function. auto is lite0 if it is installed.",
    ),
    BY_FEATURES,
]
InceptionOption = Annotated[
    Path | None,
    arg(metavar="FILE", help="Inception weights. Default: the file of `prologue weights inception`, or torch's."),
    BY_FEATURES,
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every kind. Their values identify figures that were measured before, unless a mark says otherwise."""

    run: Annotated[Positional[Path], arg(metavar="RUN"), StatedBy("weights", "configs", "manifest")]
    """Folder of a run or of an imported model, or builtin:NAME."""
    data: Annotated[
        str | None,
        arg(metavar="WHERE"),
        LOCATION,
        StatedBy("data", "data_fingerprint", "data_content", "data_own"),
    ] = None
    """Images to measure on, in the forms of `prologue train --data`; all images of another data set are measured.
    Default: the data of the training."""
    seed: SeedOption = 0
    batch: Annotated[int, NoFigure()] = 64
    """Images per batch; bounds the memory."""
    device: Annotated[DeviceOption, StatedBy("device")] = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the models."""
    checkpoint: Annotated[Which, StatedBy("weights", "configs")] = "finished"
    """Models to measure: the finished ones, or the EMA of the newest checkpoint of a run in training."""
    again: Annotated[bool, NoFigure()] = False
    """Measure again, even if the run's folder already has these figures."""
    json: Annotated[JsonOption, NoFigure()] = None

    def check(self) -> None:
        """Refuse invalid values before anything is opened."""
        for name in ("batch", "count", "per", "pairs"):
            value, least = getattr(self, name, None), 2 if name == "per" else 1
            if value is not None and value < least:
                raise ConfigError(f"--{name} must be at least {least}, not {value}")

    def open_data(self, info: RunInfo, image_size: tuple[int, int]) -> RunImages:
        """Open the images to measure on, and print which ones they are. Errors are those of `RunInfo.open_data`."""
        if self.data is not None:
            import_source(self.data)
        opened = info.open_data(self.data, image_size)
        if launched().main:
            _announce(opened.data.summary(opened.source), sys.stderr)
        return opened


@lru_cache(maxsize=1)
def _announce(line: str, stream: TextIO) -> None:
    """Print a line, unless it was the last one: several evaluations in one process usually have the same images."""
    print(line, file=stream, flush=True)


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions(Options):
    """Options of kinds that measure held-out images."""

    count: int | None = None
    """Number of held-out or given images, chosen at random. Default: all."""


OptionsT = TypeVar("OptionsT", bound=Options)


class Measurement(NamedTuple):
    """Named figures, and pictures by name."""

    record: Record
    pictures: Mapping[str, Image.Image] = {}


@dataclass(frozen=True)
class Prepared:
    """A measurement that can start: its options are checked, its models and images are open."""

    options: Options
    facts: dict[str, Any]
    """The provenance of the figures: weights, images, features. All but `ProvenanceOnly` facts identify the figures."""
    measure: Callable[[], Measurement] = field(repr=False)
    after: Callable[[Record], None] | None = field(default=None, repr=False)
    """Called with the record, whether it was measured or found."""
    writes: Path | None = None
    """File that the measurement writes besides its figures."""
    repeat: bool = False
    """Measure even if the figures are known, because a file that the measurement writes is missing."""

    @property
    def counted(self) -> dict[str, Any]:
        """The options and facts that identify the figures."""
        hints = get_type_hints(type(self.options), include_extras=True)
        options = {}
        for each in dataclasses.fields(self.options):
            value, marks = getattr(self.options, each.name), getattr(hints[each.name], "__metadata__", ())
            stated = [name for mark in marks if isinstance(mark, StatedBy) for name in mark.facts]
            lacking = [name for name in stated if name not in self.facts]
            assert value is None or not lacking, f"figures depend on --{each.name}, and no fact states {lacking}"
            if not stated and not any(isinstance(mark, NoFigure) for mark in marks):
                options[each.name] = value
        facts = {name: value for name, value in self.facts.items() if not isinstance(value, ProvenanceOnly)}
        return {"options": options, "facts": facts}

    @property
    def stated(self) -> dict[str, Any]:
        """All facts, as the provenance states them."""
        return {name: value.value if isinstance(value, ProvenanceOnly) else value for name, value in self.facts.items()}


class Kind(ABC, Generic[OptionsT]):
    """One kind of evaluation: its options, its measurement, and the words and pictures of a record.

    `prologue evaluate NAME RUN` and `prologue report` use a kind through this class alone. A kind from outside the
    package is named `module:Class`.
    """

    summary: str
    """What is measured, in one line: for the list of kinds, the help and the report."""
    options: type[OptionsT]
    """A frozen dataclass derived from `Options`; its field docstrings are the help."""
    epilog: str = ""
    """Text below the options of the help."""
    example: str = ""
    """Options of the command that the report suggests, if some are required."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def prepare(self, options: OptionsT) -> Prepared:
        """Check the options, open models and images, and return the measurement, which computes in `measure()`."""

    @abstractmethod
    def rows(self, record: Record) -> Iterator[Row]:
        """The record as rows of a table. A label that begins with two spaces is indented."""

    def sentences(self, record: Record) -> Iterator[str]:
        """What a reader must know besides the table. The `notes` of the record are added to it."""
        yield images_sentence(record)


class Subject:
    """A run that is measured, with its tokenizer and the images to measure on."""

    def __init__(self, options: Options, info: RunInfo, device: torch.device, tokenizer: Tokenizer) -> None:
        self.options = options
        self.info = info
        self.device = device
        self.tokenizer = tokenizer
        self.images = options.open_data(info, tokenizer.config.image_size)
        self.split = self.images.measured()

    @classmethod
    def open(cls, options: Options) -> Self:
        """Open the tokenizer and the images; the prior may be missing."""
        info = RunInfo.load(options.run, options.checkpoint)
        device = pick_device(options.device)
        return cls(options, info, device, info.source.tokenizer().to(device, pick_dtype(options.dtype, device)))

    def choose(self, count: int | None, stream: str) -> Int64[np.ndarray, " n"]:
        """Indices of `count` of the measured images, drawn from the random stream `stream`; all if it is None."""
        return choose_images(len(self.split.images), count, self.options.seed, stream)

    def facts(self) -> dict[str, Any]:
        """The provenance of figures of this run and these images."""
        return facts(self.info, self.options, self.images, self.device)

    def noted(self, record: Record, *notes: str) -> Record:
        """The record with the notes on the measured images, and `notes`, before its own."""
        return with_notes(record, (*self.split.notes, *self.images.notes, *notes))


class SampledSubject(Subject):
    """A run that is measured with its prior."""

    def __init__(self, options: Options, info: RunInfo, pipeline: Pipeline) -> None:
        super().__init__(options, info, pipeline.device, pipeline.tokenizer)
        self.pipeline = pipeline
        self.prior = pipeline.prior

    @classmethod
    def open(cls, options: Options, prologue: bool = False) -> Self:
        """Open both models and the images. A prior without a required prologue is an `EvaluationError`."""
        info = RunInfo.load(options.run, options.checkpoint)
        pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
        if prologue and not pipeline.prior.layout.has_prologue:
            raise EvaluationError(f"the prior of {options.run} has no prologue: measure a run whose prior has one")
        return cls(options, info, pipeline)

    def features(self, name: str) -> Features:
        """The feature network `name` for the measured images."""
        data_name = self.info.data_name(self.options.data)
        return Features.open(name, data_name, self.device, self.pipeline.manifest.trained_on)

    def classes(self, indices: Int64[np.ndarray, " n"]) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
        """The prior's class ids of the measured images at `indices`, and notes on them."""
        labels = self.split.images.labels[indices]
        names = self.images.data.class_names, self.pipeline.class_names
        return true_classes(labels, *names, self.prior.num_classes)


def checked(options: OptionsT) -> OptionsT:
    """The checked options, with `run` as a folder."""
    options.check()
    return dataclasses.replace(options, run=builtin.locate(options.run))


def training_of(info: RunInfo) -> RunConfig:
    """The configuration of the training; the defaults if the folder does not state it."""
    return info.config if info.config is not None else RunConfig()


def facts(info: RunInfo, options: Options, images: RunImages | None, device: torch.device) -> dict[str, Any]:
    """The provenance of figures, except command, versions and machine."""
    no_images = {"data": None, "data_fingerprint": None, "data_content": None, "data_own": None}
    return {
        "run": ProvenanceOnly(builtin.shown(info.path)),
        **info.facts(),
        **info.source.facts,
        **(no_images if images is None else images.facts()),
        "seed": options.seed,
        "batch": ProvenanceOnly(options.batch),
        "device": str(device),
        "dtype": options.dtype,
    }


def with_notes(record: Record, notes: tuple[str, ...]) -> Record:
    """The record with these notes before its own."""
    return record | {"notes": [*notes, *record.get("notes", ())]}


def row(label: str, record: Record, name: str, style: str) -> Row:
    """The figure `name` of the record, with its interval if the record has `name_low` and `name_high`."""
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    interval = "" if low is None else f"{low:{style}} … {high:{style}}"
    return label, f"{record[name]:{style}}", interval


SPLIT_WORDS = {"validation": "held-out", "train": "training", "given": "given"}
"""Names of splits in sentences."""


def images_sentence(record: Record) -> str:
    """Number and split of the measured images."""
    return f"N = {record['n']} {SPLIT_WORDS[record['split']]} images."


def note_sentences(record: Record) -> Iterator[str]:
    """The notes of a record as sentences."""
    for sentence in record["notes"]:
        yield f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."
