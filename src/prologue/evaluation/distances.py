"""Distances between measured images and real ones, and what is said of samples alone, from features as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import ClassifierExtractor, FeatureExtractor
from prologue.evaluation.metrics.frechet import GaussianStatistics, Moments, frechet_from_moments
from prologue.evaluation.metrics.inception_score import LEAST as ENOUGH
from prologue.evaluation.metrics.inception_score import inception_score
from prologue.evaluation.metrics.intervals import Interval
from prologue.evaluation.metrics.kid import LEAST, kernel_distance
from prologue.evaluation.metrics.precision_recall import NEIGHBOURS, precision_recall
from prologue.evaluation.reference import Reference
from prologue.evaluation.runs import ProgressCallback, Record, unwatched
from prologue.utils.processes import ALONE, Processes

INDICATIVE = 10_000
"""With fewer images on either side a Fréchet distance is indicative, and the kernel distance leads."""
PUBLISHED = 50_000
"""Samples of published Fréchet distances: one of fewer carries their number in its name."""
_SLAB = 4096
_NONE = Interval(0.0, None, None)


def measure_name(what: str, extractor: FeatureExtractor | None) -> str | None:
    """What `FD`, `KID` or `IS` in these features is called: only those in Inception have the published names."""
    if extractor is None:
        return None
    if extractor.name == "Inception":
        return "FID" if what == "FD" else what
    return f"{what}-{extractor.name}"


class Distances:
    """Features of measured images and of their reference; at the end, the figures from both.

    The reference is what `add_reference` is given, or `reference`, a file. `of_samples` adds precision, recall and,
    where the features are a classifier's, the Inception Score.
    """

    def __init__(
        self,
        features: Features,
        reference: Reference | None = None,
        *,
        of_samples: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.features = features
        self.reference = reference
        self.notes: list[str] = []
        self._of_samples = of_samples
        self._processes = processes
        self._measured: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._reference: list[Tensor] = []

    def add_measured(self, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Add samples or reconstructions, lossless. Features that are not finite are an `EvaluationError`."""
        extractor = self.features.extractor
        if self._of_samples and isinstance(extractor, ClassifierExtractor):
            features, logits = extractor.with_logits(images)
            self._measured.append(self._finite(features, "measured"))
            self._logits.append(logits)
        elif extractor is not None:
            self._measured.append(self._finite(extractor(images), "measured"))

    def add_reference(self, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Add real images."""
        if self.features.extractor is not None:
            self._reference.append(self._finite(self.features.extractor(images), "real"))

    def add_reference_file(self, batch: int, watch: ProgressCallback = unwatched) -> None:
        """Add the images that the reference holds, if it does."""
        if self.reference is None or self.reference.images_shape is None or self.features.extractor is None:
            return
        batches = self.reference.batches(batch, self._processes)
        steps = self._processes.share(range(0, self.reference.images_shape[0], batch))
        for _, images in zip(watch(steps, "reference images"), batches, strict=True):
            self.add_reference(images)

    def record(self, seed: int) -> Record:
        """The figures under their names with the features, or nulls and the reason; `notes` then says what is missing.

        `leads` names the figure to look at; `indicative` marks the Fréchet distance of few images. Of several
        processes the main one alone computes them.
        """
        score = self._score()
        measured, real = self._gathered(self._measured), self._gathered(self._reference)
        extractor, reason = self.features.extractor, self.features.reason
        moments = self.reference.moments if self.reference is not None else None
        known = len(real) if moments is None else self.reference.count if self.reference is not None else None
        fewest = min(count for count in (len(measured), known) if count is not None)
        if extractor is not None and fewest < LEAST:
            reason = f"a distance needs at least {LEAST} images on each side"
        name = measure_name("FD", extractor)
        out: Record = {
            "features": None if extractor is None else extractor.name,
            "features_hash": None if extractor is None else extractor.hash,
            "fd_name": name,
            "fd_label": name and (name if len(measured) >= PUBLISHED else f"{name}@{len(measured)}"),
            "fd": None,
            "kid_name": measure_name("KID", extractor),
            **dict.fromkeys(_NONE.fields("kid")),
            "kid_error": None,
            "leads": None,
            "indicative": fewest < INDICATIVE if reason is None else None,
            "n_measured": len(measured),
            "n_compared": len(real),
            "trained_on_features": self.features.trained_on,
            "reason": reason,
        }
        if self._of_samples:
            names = {what: measure_name(what, extractor) for what in ("IS", "precision", "recall")}
            out |= {"is_name": names["IS"] if score["is"] is not None else None, **score}
            for what in ("precision", "recall"):
                out |= {f"{what}_name": names[what], **dict.fromkeys(_NONE.fields(what))}
            out["neighbours"] = NEIGHBOURS
        if self._processes.rank == 0 and reason is None:
            out |= self._compared(measured, real, moments, seed, bool(out["indicative"]))
        return out

    def _score(self) -> Record:
        """The Inception Score of a classifier's logits, which are let go; nulls without them."""
        logits = self._gathered(self._logits)
        if self._processes.rank > 0 or len(logits) < ENOUGH:
            return dict.fromkeys(_NONE.fields("is"))
        return inception_score(logits).fields("is")

    def _compared(self, measured: Tensor, real: Tensor, moments: Moments | None, seed: int, indicative: bool) -> Record:
        """What needs a reference."""
        theirs = moments_of(real) if moments is None else moments
        out: Record = {"fd": frechet_from_moments(*moments_of(measured), *theirs), "leads": "fd"}
        figures = "the kernel distance, precision and recall" if self._of_samples else "the kernel distance"
        if len(real) < LEAST:
            where = self.reference.path if self.reference is not None else "the reference"
            self.notes.append(f"{figures} compare images, and {where} holds statistics alone")
            return out
        kid = kernel_distance(measured, real, seed=seed)
        out |= {"kid": kid.value, "kid_low": kid.low, "kid_high": kid.high, "kid_error": kid.error}
        out["leads"] = "kid" if indicative else "fd"
        if self._of_samples:
            try:
                both = precision_recall(measured, real)
                out |= both.precision.fields("precision") | both.recall.fields("recall")
            except EvaluationError as error:
                self.notes.append(f"no precision and recall: {error}")
        return out

    def _gathered(self, parts: list[Tensor]) -> Float32[Tensor, "n d"]:
        """All processes' rows; the parts are let go."""
        own = torch.cat(parts) if parts else torch.empty(0, 0)
        parts.clear()
        return self._processes.gather(own)

    def _finite(self, features: Tensor, of: str) -> Tensor:
        if not bool(features.isfinite().all()):
            extractor: Any = self.features.extractor
            raise EvaluationError(
                f"the features {extractor.name} of the {of} images hold NaN or infinity: "
                "the models' weights or the features are broken"
            )
        return features


def moments_of(features: Float[Tensor, "n d"]) -> Moments:
    """Mean and covariance, a slab at a time."""
    statistics = GaussianStatistics(features.shape[1])
    for slab in torch.split(features, _SLAB):
        statistics.update(slab)
    return statistics.moments


def gather_statistics(statistics: GaussianStatistics | None, processes: Processes) -> GaussianStatistics:
    """Those of all processes together; equal for any number of them but for rounding in float64."""
    if processes.world == 1 and statistics is not None:
        return statistics
    own = torch.empty(0, 0, dtype=torch.float64) if statistics is None else statistics.state()
    states = processes.gather(own)
    if not len(states):
        raise EvaluationError("there are no images to measure")
    parts: Sequence[Tensor] = torch.split(states, states.shape[1] + 2)
    total = GaussianStatistics(states.shape[1])
    for part in parts:
        total.merge(GaussianStatistics.from_state(part))
    return total


def statistics_of(
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    extractor: FeatureExtractor,
    *,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    processes: Processes = ALONE,
) -> GaussianStatistics:
    """Moments of the features of the center crops at `indices`, in memory that does not grow with their number."""
    statistics: GaussianStatistics | None = None
    for start in watch(processes.share(range(0, len(indices), batch)), "features"):
        features = extractor(center_batch(images, indices[start : start + batch]).images)
        statistics = GaussianStatistics(features.shape[1]) if statistics is None else statistics
        statistics.update(features)
    return gather_statistics(statistics, processes)
