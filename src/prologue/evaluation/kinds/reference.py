"""`prologue evaluate reference`: reference statistics of real images in ADM's format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from tyro.conf import arg

from prologue.config import TokenizerConfig
from prologue.data.source import ImageSet
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.distances import statistics_of
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.base import (
    SPLIT_WORDS,
    FeaturesOption,
    HeldOutOptions,
    InceptionOption,
    Kind,
    Measurement,
    Prepared,
    Row,
    facts,
)
from prologue.evaluation.reference import card_path, write_reference
from prologue.evaluation.runs import Record, RunInfo, choose_images
from prologue.models.weights import read_config
from prologue.utils.files import in_shell, is_stream
from prologue.utils.options import OUTPUT_FILE
from prologue.utils.processes import Processes
from prologue.utils.progress import progress


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(HeldOutOptions):
    count: int | None = None
    """Number of images of the split, chosen at random. Default: all."""
    split: Literal["train", "validation"] = "train"
    """Split of the images: train is the reference of generation, validation that of reconstruction."""
    features: FeaturesOption = "auto"
    inception_weights: InceptionOption = None
    images: int = 0
    """Number of images to store in the file as well, for the kernel distance, precision and recall."""
    out: Annotated[Path, arg(metavar="FILE.npz"), OUTPUT_FILE]
    """File to write; FILE.json beside it describes it."""

    def check(self) -> None:
        super().check()
        if self.out.suffix != ".npz":
            raise ConfigError(f"--out {self.out} must end in .npz")
        if is_stream(self.out):
            raise ConfigError(f"--out {self.out} is a pipe or a device, and a reference is two files: name a file")
        if self.images < 0:
            raise ConfigError(f"--images must be at least 0, not {self.images}")


@dataclass(frozen=True)
class _Views:
    """Center crops as a sequence, read one at a time."""

    images: ImageSet
    indices: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "3 h w"]:
        return self.images.center_view(int(self.indices[index]))


class Reference(Kind[ReferenceOptions]):
    """Mean and covariance of the features of a run's images, written to a file."""

    summary = "writes the statistics of real images that generation or reconstruction is measured against"
    options = ReferenceOptions

    def prepare(self, options: ReferenceOptions) -> Prepared:
        info = RunInfo.load(options.run, options.checkpoint)
        processes = Processes.join(options.device)
        size = read_config(options.run / "tokenizer", TokenizerConfig).image_size
        opened = options.open_data(info, size)
        features = Features.open(options.features, opened.source, processes.device, (), options.inception_weights)
        if features.extractor is None:
            raise EvaluationError(f"reference statistics need features: {features.reason}")
        extractor, images = features.extractor, opened.reference()
        if opened.own and options.split == "validation":
            images = opened.data.validation
        if len(images) < 2:
            which = f"{options.split} images" if opened.own else "images"
            raise EvaluationError(f"{opened.source} has {len(images)} {which}, and statistics need at least 2")
        indices = choose_images(len(images), options.count, options.seed, "reference statistics")

        def measure() -> Measurement:
            if options.out.exists() and not options.again:
                raise ConfigError(f"{options.out} exists: give another --out, or replace it with --again")
            statistics = statistics_of(
                images, indices, extractor, batch=options.batch, watch=progress, processes=processes
            )
            record: Record = {"kind": "reference", "n": len(indices), "split": options.split, "views": "center"}
            record["given"] = not opened.own
            record |= features.facts() | {"dimension": statistics.dimension, "notes": list(opened.notes)}
            kept = choose_images(len(indices), max(1, options.images), options.seed, "reference images")
            kept = kept[: options.images]
            record |= {"file": str(options.out), "images": len(kept), "seed": options.seed}
            if processes.main:
                card = write_reference(
                    options.out,
                    statistics,
                    _Views(images, indices[kept]) if len(kept) else None,
                    features=extractor.name,
                    features_hash=extractor.hash,
                    features_source=extractor.source,
                    image_size=size,
                    split=options.split,
                    data_fingerprint=opened.data.fingerprint,
                )
                record["sha256"] = card.sha256
            return Measurement(record)

        origin = facts(info, options, opened, processes.device) | features.facts()
        written = options.out.is_file() and card_path(options.out).is_file()
        return Prepared(options, origin, measure, writes=options.out, anew=not written)

    def rows(self, record: Record) -> Iterator[Row]:
        yield "images", f"{record['n']}", ""
        yield f"features per image ({record['features']})", f"{record['dimension']}", ""
        yield "images in the file", f"{record['images']}", ""

    def sentences(self, record: Record) -> Iterator[str]:
        which = SPLIT_WORDS["given" if record.get("given") else record["split"]]
        yield f"{record['file']} holds the mean and covariance of N = {record['n']} {which} images (center crops)."
        against = "generation" if record["split"] == "train" else "reconstruction"
        yield f"Measure against it: prologue evaluate {against} RUN --reference {in_shell(record['file'])}"
        if not record["images"]:
            yield "Without images (--images N) kernel distance, precision and recall cannot be measured against it."
