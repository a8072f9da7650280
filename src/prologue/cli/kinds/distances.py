"""Options, rows and sentences of distances between image sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import arg

from prologue.cli.kinds.base import FeaturesOption, InceptionOption, Options, Row, StatedBy, Told, row
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.distances import INDICATIVE, PUBLISHED
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.reference import Reference, open_reference
from prologue.evaluation.runs import Record, RunInfo


@dataclass(frozen=True, kw_only=True)
class DistanceOptions(Options):
    features: FeaturesOption = "auto"
    inception_weights: InceptionOption = None
    reference: Annotated[Path | None, arg(metavar="FILE.npz"), StatedBy("reference_sha256")] = None
    """Statistics or images to measure against, in ADM's form, as `prologue evaluate reference` writes them."""
    reference_features: Annotated[str | None, arg(metavar="FEATURES")] = None
    """What a reference without a JSON beside it has its statistics of, such as inception; recorded as declared."""
    reference_split: Literal["train", "validation"] | None = None
    """Which images a reference without a JSON beside it is of; recorded as declared."""

    def open_features(self, info: RunInfo, device: torch.device, trained_on: tuple[str, ...]) -> Features:
        """The features that were asked for."""
        if self.inception_weights is not None and self.features != "inception":
            raise ConfigError("--inception-weights goes with --features inception")
        return Features.open(self.features, self.data or info.data or "", device, trained_on, self.inception_weights)

    def open_reference(self, features: Features, image_size: tuple[int, int], split: str) -> Reference | None:
        """The reference, if one was given; an `EvaluationError` where it does not fit the measurement."""
        if self.reference is None:
            if self.reference_features is not None or self.reference_split is not None:
                raise ConfigError("--reference-features and --reference-split describe a file: give --reference FILE")
            return None
        if features.extractor is None:
            raise EvaluationError(f"nothing can be measured against {self.reference}: {features.reason}")
        found = open_reference(self.reference, self.reference_features, self.reference_split)
        found.require(features.extractor, image_size, split)
        return found


def reference_facts(reference: Reference | None) -> dict[str, Any]:
    """What figures against a reference depend on; its path is only told."""
    return {} if reference is None else reference.facts() | {"reference": Told(str(reference.path))}


def reference_notes(reference: Reference | None, fingerprint: str | None) -> tuple[str, ...]:
    """What has to be known of a reference beside the figures."""
    if reference is None:
        return ()
    if reference.card is None:
        what = f"features {reference.features} and " if reference.features is not None else ""
        return (f"{what}the {reference.split} split of {reference.path.name} are declared, not known",)
    if fingerprint is not None and reference.card.data_fingerprint not in (None, fingerprint):
        return (f"{reference.path.name} was made from other files, or with other data options, than the run's images",)
    return ()


def distance_rows(record: Record) -> Iterator[Row]:
    """The leading distance first."""
    mark = " (trained on)" if record["trained_on_features"] else ""
    fd = kid = None
    if record["kid"] is not None:
        kid = row(record["kid_name"] + mark, record, "kid", ".4g")
    if record["fd"] is not None:
        label = record.get("fd_label") or record["fd_name"]
        fd = (label + mark + (", indicative" if record["indicative"] else ""), f"{record['fd']:.4g}", "")
    yield from (figure for figure in ((kid, fd) if record["leads"] == "kid" else (fd, kid)) if figure is not None)
    if record.get("is") is not None:
        yield row(record["is_name"], record, "is", ".3f")
    for what in ("precision", "recall"):
        if record.get(what) is not None:
            yield row(f"{record[f'{what}_name']} (k = {record['neighbours']})", record, what, ".3f")


def distance_sentences(record: Record) -> Iterator[str]:
    """What the distances are worth."""
    name, label = record["fd_name"], record.get("fd_label")
    if record["fd"] is not None and record["indicative"]:
        leads = f"; {record['kid_name']} leads" if record["leads"] == "kid" else ""
        yield (
            f"Indicative: with fewer than {INDICATIVE} images on a side {name} depends on their number{leads}. "
            "Compare at the same N only."
        )
    elif record["fd"] is not None and label is not None and label != name:
        yield f"{label}: published distances are of {PUBLISHED} samples, and fewer give larger ones."
    if record.get("reference") is not None and record["kid"] is not None:
        yield f"{record['kid_name']} is to the {record['n_compared']} images that the reference holds."
    if record.get("precision") is not None:
        which = "Precision and recall" if record["is"] is None else f"Precision, recall and {record['is_name']}"
        yield f"{which} depend on the numbers, too: {record['n_measured']} samples, {record['n_compared']} real images."
    if record["trained_on_features"]:
        yield f"The tokenizer trained on these features ({record['features']}): the distances flatter this run."
    if record["reason"] is not None:
        yield f"No distance: {record['reason']}."
