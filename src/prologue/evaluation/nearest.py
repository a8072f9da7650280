"""Distances to the nearest training images, and what they say about memorisation.

The decoder loses detail, which moves samples away from every image, copies included. Held-out images are therefore
encoded and decoded before they are compared: a run that samples the data distribution then has the same distances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import Data, ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.features import FeatureExtractor
from prologue.evaluation.metrics.coarse import coarse_pixels
from prologue.evaluation.metrics.intervals import Interval, missing_fields, wilson_interval
from prologue.evaluation.runs import (
    ProgressCallback,
    Record,
    center_crops,
    choose_images,
    evaluating,
    unwatched,
)
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.utils.rng import numpy_stream

NEAR = 0.01
"""Quantile of the distances of held-out images below which a sample is near a training image."""
BY_DEFAULT = 100_000
"""Number of training images below which `prologue evaluate generation` compares samples with them."""
LEVELS = 101
"""Evenly spaced quantiles from 0 to 1 that a record keeps of each distribution."""
CHANCE = 0.025
"""Probability of so many near samples without memorisation below which a warning is given."""
_DRAWS = 1000


@dataclass(frozen=True)
class Described:
    """Images as points, row `i` of image `i`: coarse pixels and, with a feature network, features."""

    coarse: Float64[Tensor, "n d"]
    features: Float[Tensor, "n f"] | None = None

    @classmethod
    def of(cls, images: UInt8[Tensor, "n 3 h w"], extractor: FeatureExtractor | None) -> Described:
        return cls(coarse_pixels(images), None if extractor is None else extractor(images))

    @classmethod
    def cat(cls, parts: Sequence[Described]) -> Described:
        """Concatenate at least one part."""
        features = [part.features for part in parts if part.features is not None]
        return cls(torch.cat([part.coarse for part in parts]), torch.cat(features) if features else None)

    def __len__(self) -> int:
        return len(self.coarse)


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each image: distance, index, and whether its mirror image is the nearest."""

    distance: Float64[Tensor, " n"]
    index: Int64[Tensor, " n"]
    mirrored: Bool[Tensor, " n"]

    def __getitem__(self, rows: slice) -> Neighbours:
        return Neighbours(self.distance[rows], self.index[rows], self.mirrored[rows])


class NearestSearch:
    """The nearest among points that arrive in chunks. Distances are RMS differences, exactly 0 for copies."""

    def __init__(self, points: Float[Tensor, "n d"]) -> None:
        self._points = points.double()
        self._squares = self._points.square().sum(1)
        self._distance = torch.full((len(points),), torch.inf, dtype=torch.float64)
        self._index = torch.zeros(len(points), dtype=torch.int64)
        self._mirrored = torch.zeros(len(points), dtype=torch.bool)

    def add(self, points: Float[Tensor, "m d"], first: int, mirrored: bool = False) -> None:
        """Add the images `first…first+m`. Another width, NaN or infinity is an `EvaluationError`."""
        wide = points.double()
        if wide.ndim != 2 or wide.shape[1] != self._points.shape[1]:
            raise EvaluationError(f"points of {self._points.shape[1]} values expected, not {tuple(wide.shape)}")
        if not bool(wide.isfinite().all()):
            raise EvaluationError("the features hold NaN or infinity: the images or the features' weights are broken")
        if not len(wide):
            return
        least, nearest = (wide.square().sum(1) - 2 * self._points @ wide.T).min(1)
        # Products find the candidates; differences give their distances, so that the distance of a copy is 0.
        about = (least + self._squares) / wide.shape[1]
        rows = (about <= self._distance.square() + 1e-9 * (self._squares + 1)).nonzero()[:, 0]
        distance = (self._points[rows] - wide[nearest[rows]]).square().mean(1).sqrt()
        closer = distance < self._distance[rows]
        rows = rows[closer]
        self._distance[rows] = distance[closer]
        self._index[rows] = nearest[rows] + first
        self._mirrored[rows] = mirrored

    def result(self) -> Neighbours:
        """The nearest images; an `EvaluationError` if none was added."""
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
    """The nearest of all center crops of `train` in `coarse` pixels and, with the extractor of the images, `features`.

    `mirror` includes mirror images, for runs that train on them. Memory does not grow with the training set.
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


def describe_images(
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    extractor: FeatureExtractor | None = None,
    *,
    decoded_by: Tokenizer | None = None,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    what: str = "images",
) -> Described:
    """The center crops at `indices` as points, encoded and decoded first if there is a tokenizer `decoded_by`."""
    crops = center_crops(images, indices, batch=batch, watch=watch, what=what)
    shown = crops if decoded_by is None else (decoded(decoded_by, pictures) for pictures in crops)
    return Described.cat([Described.of(pictures, extractor) for pictures in shown])


def decoded(tokenizer: Tokenizer, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """The images encoded and decoded, on the CPU."""
    device = next(tokenizer.parameters()).device
    with evaluating(tokenizer):
        return to_uint8(tokenizer.decode(tokenizer.encode(to_model_range(images.to(device))).visual)).cpu()


def control_images(data: Data, count: int, seed: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Indices of at most `count` held-out images, and of as many training images for copies."""
    held_out = choose_images(len(data.validation), count, seed, "memorisation")
    return held_out, choose_images(len(data.train), len(held_out), seed, "memorisation training")


def compare_samples(
    tokenizer: Tokenizer,
    samples: Described,
    data: Data,
    *,
    mirror: bool = False,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> Record:
    """The `coarse` figures of `compare_nearest` for given samples, with the controls of `control_images`."""
    held_out, known = control_images(data, len(samples), seed)
    sides = [
        describe_images(images, indices, decoded_by=tokenizer, batch=batch, watch=watch, what="decoded images")
        for images, indices in ((data.validation, held_out), (data.train, known))
    ]
    every = Described.cat([samples, *sides])
    found = nearest_training(every, data.train, None, mirror=mirror, batch=batch, watch=watch)
    near, validation, copies = torch.split(found["coarse"].distance, [len(samples), *map(len, sides)])
    sizes = {"n": len(samples), "n_validation": len(held_out), "n_training": len(data.train), "mirrored": mirror}
    return sizes | compare_nearest(near, validation, copies, name="coarse", seed=seed)


def compare_nearest(
    samples: Float64[Tensor, " n"] | None,
    validation: Float64[Tensor, " m"] | None,
    copies: Float64[Tensor, " k"] | None,
    *,
    name: str = "coarse",
    seed: int = 0,
) -> Record:
    """Nearest distances of samples against those of validation images and copies; None for each figure without them.

    - `{name}_nearer`: probability that a sample is nearer than a validation image (ties half), 0.5 without
      memorisation; its 95 % bootstrap interval draws both sides 1000 times.
    - `{name}_share`: part of the samples nearer than the `NEAR` quantile of the validation images, with its Wilson
      interval; `{name}_share_expected` without memorisation, `{name}_share_chance` the exact probability of as many or
      more then, over samples and held-out images alike.
    - `{name}_copies_share`: the same part of the copies, the share of a run that only copies.
    - `{name}_quantiles`, `{name}_validation_quantiles`, `{name}_copies_quantiles`: `LEVELS` of each, and `…_median`.
    """
    prefixes = (name, f"{name}_validation", f"{name}_copies")
    if samples is None or validation is None or copies is None:
        record = missing_fields(f"{name}_nearer", f"{name}_share", f"{name}_copies_share")
        record |= dict.fromkeys(f"{name}_{what}" for what in ("threshold", "share_expected", "share_chance"))
        for prefix in prefixes:
            record |= spread(prefix)
        return record
    if not (len(samples) and len(validation) and len(copies)):
        raise EvaluationError("nearest distances need samples, validation images and copies of training images")
    ordered = validation.sort().values
    rank = max(1, math.ceil(NEAR * len(ordered)))
    threshold = float(ordered[rank - 1])
    near = int((samples < threshold).sum())
    record = _nearer(samples, ordered, name, seed).fields(f"{name}_nearer")
    record |= wilson_interval(near, len(samples)).fields(f"{name}_share")
    record |= wilson_interval(int((copies < threshold).sum()), len(copies)).fields(f"{name}_copies_share")
    record |= {f"{name}_threshold": threshold, f"{name}_share_expected": rank / (len(ordered) + 1)}
    record |= {f"{name}_share_chance": chance_of_near(near, len(samples), rank, len(ordered))}
    for prefix, values in zip(prefixes, (samples, validation, copies), strict=True):
        record |= spread(prefix, values)
    return record


def spread(prefix: str, values: Float64[Tensor, " n"] | None = None) -> Record:
    """Median and quantiles of a distribution; None without values."""
    if values is None:
        return {f"{prefix}_median": None, f"{prefix}_quantiles": None}
    quantiles = np.quantile(values.numpy(), np.linspace(0, 1, LEVELS)).tolist()
    return {f"{prefix}_median": float(np.median(values.numpy())), f"{prefix}_quantiles": quantiles}


def chance_of_near(near: int, samples: int, rank: int, validation: int) -> float:
    """Probability of `near` or more samples below the `rank`-th smallest validation distance without memorisation.

    All orders of samples and validation images are then equally likely, so this is the hypergeometric probability that
    fewer than `rank` of the first `near + rank − 1` are validation images.
    """
    first = near + rank - 1
    ways = sum(math.comb(validation, held) * math.comb(samples, first - held) for held in range(min(rank, first + 1)))
    return min(1.0, ways / math.comb(samples + validation, first))


def _nearer(samples: Float64[Tensor, " n"], ordered: Float64[Tensor, " m"], name: str, seed: int) -> Interval:
    """Probability that a sample is nearer than a validation image, ties half."""
    # For each sample, the validation images below it; a bootstrap draw turns them into weighted counts.
    below = torch.searchsorted(ordered, samples).numpy()
    upto = torch.searchsorted(ordered, samples, right=True).numpy()
    rng = numpy_stream(seed, "evaluation", "memorisation", name)

    def rate(sample_weights: Int64[np.ndarray, " n"], weights: Int64[np.ndarray, " m"]) -> float:
        sums = np.concatenate([[0], np.cumsum(weights)])
        farther = len(ordered) - (sums[below] + sums[upto]) / 2
        return float(sample_weights @ farther) / (len(samples) * len(ordered))

    value = rate(np.ones(len(samples), dtype=np.int64), np.ones(len(ordered), dtype=np.int64))
    drawn = [
        rate(*(np.bincount(rng.integers(size, size=size), minlength=size) for size in (len(samples), len(ordered))))
        for _ in range(_DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def warns(record: Record, name: str) -> bool:
    """Whether more samples are near a training image than chance explains."""
    more = record[f"{name}_share_low"] > record[f"{name}_share_expected"]
    return bool(more and record[f"{name}_share_chance"] < CHANCE)


def nearness_sentences(record: Record, name: str, label: str) -> Iterator[str]:
    """What the figures `{name}_…` of `compare_nearest` say; `label` names the distance."""
    share, expected = record[f"{name}_share"], record[f"{name}_share_expected"]
    if warns(record, name):
        yield (
            f"Warning, {label}: {share:.1%} of the samples ({record[f'{name}_share_low']:.1%} … "
            f"{record[f'{name}_share_high']:.1%}) are nearer to a training image than 99 % of the held-out images are; "
            f"{expected:.1%} are expected without memorisation. Look at the closest pairs."
        )
    else:
        yield f"{label}: the share of samples very near a training image is that of held-out images, at this N."
    if record[f"{name}_copies_share_high"] < 0.5:
        yield (
            f"{label}: only {record[f'{name}_copies_share']:.1%} of the copies are that near, so this share would miss "
            "many copies."
        )
    nearer, low, high = (record[f"{name}_nearer{end}"] for end in ("", "_low", "_high"))
    if low > 0.5:
        yield (
            f"Warning, {label}: samples are nearer to the training images than held-out images are ({nearer:.0%} of "
            f"the pairs, {low:.0%} … {high:.0%}). Causes are copies, and smooth or typical images, which are near many."
        )
    elif high < 0.5:
        yield f"{label}: samples are farther from the training images than held-out images are."
    else:
        yield f"{label}: overall not distinguishable from held-out images at this N."
