"""The nearest training image of any image, in coarse pixels and in features, in one pass over the training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.features import FeatureExtractor
from prologue.evaluation.metrics.coarse import coarse_pixels
from prologue.evaluation.runs import ProgressCallback, unwatched


@dataclass(frozen=True)
class Described:
    """Images as points, entry `i` of each of image `i`: coarse pixels, and features where there are any."""

    coarse: Float64[Tensor, "n d"]
    features: Float[Tensor, "n f"] | None = None

    @classmethod
    def of(cls, images: UInt8[Tensor, "n 3 h w"], extractor: FeatureExtractor | None) -> Described:
        return cls(coarse_pixels(images), None if extractor is None else extractor(images))

    @classmethod
    def cat(cls, parts: Sequence[Described]) -> Described:
        """All of them; at least one."""
        features = [part.features for part in parts if part.features is not None]
        return cls(torch.cat([part.coarse for part in parts]), torch.cat(features) if features else None)

    def __len__(self) -> int:
        return len(self.coarse)


@dataclass(frozen=True)
class Neighbours:
    """For each image its nearest training image: the distance, the index, and whether that is its mirror image."""

    distance: Float64[Tensor, " n"]
    index: Int64[Tensor, " n"]
    mirrored: Bool[Tensor, " n"]

    def __getitem__(self, rows: slice) -> Neighbours:
        return Neighbours(self.distance[rows], self.index[rows], self.mirrored[rows])


class NearestSearch:
    """The nearest so far among points that arrive in chunks; distances are RMS differences, exact for copies."""

    def __init__(self, points: Float[Tensor, "n d"]) -> None:
        self._points = points.double()
        self._squares = self._points.square().sum(1)
        self._distance = torch.full((len(points),), torch.inf, dtype=torch.float64)
        self._index = torch.zeros(len(points), dtype=torch.int64)
        self._mirrored = torch.zeros(len(points), dtype=torch.bool)

    def add(self, points: Float[Tensor, "m d"], first: int, mirrored: bool = False) -> None:
        """Look among images `first…first+m`. Other widths, NaN or infinity are an `EvaluationError`."""
        wide = points.double()
        if wide.ndim != 2 or wide.shape[1] != self._points.shape[1]:
            raise EvaluationError(f"points of {self._points.shape[1]} values expected, not {tuple(wide.shape)}")
        if not bool(wide.isfinite().all()):
            raise EvaluationError("the features hold NaN or infinity: the images or the features' weights are broken")
        if not len(wide):
            return
        least, nearest = (wide.square().sum(1) - 2 * self._points @ wide.T).min(1)
        # The products find who may be nearer; distances are taken from the differences, so that a copy's is 0.
        about = (least + self._squares) / wide.shape[1]
        rows = (about <= self._distance.square() + 1e-9 * (self._squares + 1)).nonzero()[:, 0]
        distance = (self._points[rows] - wide[nearest[rows]]).square().mean(1).sqrt()
        closer = distance < self._distance[rows]
        rows = rows[closer]
        self._distance[rows] = distance[closer]
        self._index[rows] = nearest[rows] + first
        self._mirrored[rows] = mirrored

    def result(self) -> Neighbours:
        """What was found; an `EvaluationError` where nothing was looked at."""
        if len(self._points) and not bool(self._distance.isfinite().all()):
            raise EvaluationError("there are no training images to compare with")
        return Neighbours(self._distance, self._index, self._mirrored)


def nearest_training(
    images: Described,
    train: ImageSet,
    extractor: FeatureExtractor | None = None,
    *,
    mirror: bool = False,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> dict[str, Neighbours]:
    """The nearest of all center crops of `train`, `coarse` and, with the extractor of the images, `features`.

    `mirror` also looks at each training image mirrored, for runs that train on these. Memory grows with the images
    that are asked about, not with the training set.
    """
    if extractor is not None and images.features is None:
        raise EvaluationError("the images have no features to compare: describe them with the same extractor")
    searches = {"coarse": NearestSearch(images.coarse)}
    if extractor is not None and images.features is not None:
        searches["features"] = NearestSearch(images.features)
    for start in watch(range(0, len(train), batch), "training images"):
        pictures = center_batch(train, range(start, min(start + batch, len(train)))).images
        for mirrored in (False, True) if mirror else (False,):
            points = Described.of(pictures.flip(-1) if mirrored else pictures, extractor)
            searches["coarse"].add(points.coarse, start, mirrored)
            if points.features is not None:
                searches["features"].add(points.features, start, mirrored)
    return {name: search.result() for name, search in searches.items()}
