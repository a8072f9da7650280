"""Options, rows and sentences of distances between image sets, for the kinds that measure them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import arg

from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.distances import INDICATIVE, PUBLISHED
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.base import FeaturesOption, InceptionOption, Options, Row, StatedBy, Told, row
from prologue.evaluation.reference import Reference, open_reference
from prologue.evaluation.runs import Record, RunInfo


@dataclass(frozen=True, kw_only=True)
class DistanceOptions(Options):
    features: FeaturesOption = "auto"
    inception_weights: InceptionOption = None
    reference: Annotated[Path | None, arg(metavar="FILE.npz"), StatedBy("reference_sha256")] = None
    """Reference statistics or images in ADM's format, such as those of `prologue evaluate reference`."""
    reference_features: Annotated[str | None, arg(metavar="FEATURES")] = None
    """Feature network of a reference without a JSON file beside it, such as inception; recorded as declared."""
    reference_split: Literal["train", "validation"] | None = None
    """Split of a reference without a JSON file beside it; recorded as declared."""

    def open_features(self, info: RunInfo, device: torch.device, trained_on: tuple[str, ...]) -> Features:
        """The feature network of `--features`."""
        if self.inception_weights is not None and self.features != "inception":
            raise ConfigError("--inception-weights needs --features inception")
        return Features.open(self.features, self.data or info.data or "", device, trained_on, self.inception_weights)

    def open_reference(self, features: Features, image_size: tuple[int, int], split: str) -> Reference | None:
        """The reference, if one is given; an `EvaluationError` if it does not fit the measurement."""
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
    """What figures against a reference depend on; its path does not count."""
    return {} if reference is None else reference.facts() | {"reference": Told(str(reference.path))}


def reference_notes(reference: Reference | None, fingerprint: str | None) -> tuple[str, ...]:
    """Notes on a reference: what is only declared, and whether it was made from other files."""
    if reference is None:
        return ()
    if reference.card is None:
        what = f"features {reference.features} and " if reference.features is not None else ""
        return (f"{what}the {reference.split} split of {reference.path.name} are declared, not known",)
    if fingerprint is not None and reference.card.data_fingerprint not in (None, fingerprint):
        return (f"{reference.path.name} was made from other files, or with other data options, than the run's images",)
    return ()


def distance_rows(record: Record) -> Iterator[Row]:
    """The distances, the leading one first, and the figures of samples."""
    mark = " (trained on)" if record["trained_on_features"] else ""
    found = []
    if record["fd"] is not None:
        label = record.get("fd_label") or record["fd_name"]
        found.append((label + mark + (", indicative" if record["indicative"] else ""), f"{record['fd']:.4g}", ""))
    if record["kid"] is not None:
        found.append(row(record["kid_name"] + mark, record, "kid", ".4g"))
    yield from reversed(found) if record["leads"] == "kid" else found
    if record.get("is") is not None:
        yield row(record["is_name"], record, "is", ".3f")
    for what in ("precision", "recall"):
        if record.get(what) is not None:
            yield row(f"{record[f'{what}_name']} (k = {record['neighbours']})", record, what, ".3f")


def distance_sentences(record: Record) -> Iterator[str]:
    """How reliable the distances are."""
    name, label = record["fd_name"], record.get("fd_label")
    if record["fd"] is not None and record["indicative"]:
        leads = f" {record['kid_name']} leads." if record["leads"] == "kid" else ""
        yield (
            f"{name} is indicative: it depends on the number of images if one side has fewer than {INDICATIVE}.{leads} "
            "Compare at the same N only."
        )
    elif record["fd"] is not None and label is not None and label != name:
        yield f"{label}: published distances use {PUBLISHED} samples; fewer samples give larger distances."
    if record.get("reference") is not None and record["kid"] is not None:
        yield f"{record['kid_name']} is measured against the {record['n_compared']} images in the reference."
    if record.get("precision") is not None:
        which = "Precision and recall" if record["is"] is None else f"Precision, recall and {record['is_name']}"
        yield f"{which} also depend on N: {record['n_measured']} samples, {record['n_compared']} real images."
    if record["trained_on_features"]:
        yield trained_on_sentence(record)
    if record["reason"] is not None:
        yield f"No distance: {record['reason']}."


def trained_on_sentence(record: Record) -> str:
    """Warns of distances in features that a training loss used."""
    return f"The tokenizer was trained with these features ({record['features']}), so the distances flatter this run."
