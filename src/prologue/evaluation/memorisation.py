"""Whether samples lie nearer to the training images than images do that the run has never seen.

Samples come out of the decoder, which loses detail and so moves them away from any image, copies too. Held-out images
are therefore encoded and decoded before they are compared: a run that draws as the data do is then exactly like them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import Data, ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.distances import INDICATIVE, measure_name, moments_of
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import FeatureExtractor
from prologue.evaluation.generation import draw_samples, uniform_classes
from prologue.evaluation.metrics.frechet import frechet_from_moments
from prologue.evaluation.metrics.intervals import Interval, wilson_interval
from prologue.evaluation.metrics.kid import LEAST, kernel_distance
from prologue.evaluation.nearest import Described, Neighbours, nearest_training
from prologue.evaluation.runs import ProgressCallback, Record, center_crops, choose_images, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_model_range, to_uint8
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import numpy_stream

NEAR = 0.01
"""A sample is near a training image where it is nearer than all but this part of the validation images are."""
BY_DEFAULT = 100_000
"""Below so many training images samples are compared with them whenever they are measured."""
SHOWN = 6
"""Closest pairs in the picture."""
LEVELS = 101
"""Quantiles that a record keeps of each distribution, evenly spaced from 0 to 1."""
CHANCE = 0.025
"""Below this probability so many near samples are no accident of which images were held out."""
_DRAWS = 1000


class Pair(NamedTuple):
    """An image, the training image nearest to it (mirrored where that is nearer), and their distance."""

    image: UInt8[Tensor, "3 h w"]
    training: UInt8[Tensor, "3 h w"]
    distance: float


class Closest(NamedTuple):
    """The pairs at the smallest distances in coarse pixels, the closest first."""

    samples: list[Pair]
    validation: list[Pair]


def evaluate_memorisation(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    data: Data,
    features: Features,
    *,
    count: int,
    mirror: bool = False,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> tuple[Record, Closest]:
    """`count` samples with uniform labels, and at most as many validation images, against all training images.

    See `compare_nearest` for the figures of both kinds of distance, `coarse` and `features`; `mirror` looks at mirrored
    training images too. Validation images are encoded and decoded, `…_undecoded` are distances of them as they are.
    Copies, the control, are as many training images, encoded and decoded. Kernel and Fréchet distances are of the
    samples to the validation and to those training images as they are. Raises `EvaluationError` without held-out
    images, `SamplingError` as `draw_samples` does.
    """
    if count < 1:
        raise EvaluationError(f"count must be at least 1, not {count}")
    if not len(data.validation):
        raise EvaluationError(
            "no images are held out, so nothing says how near to the training images a new image lies: train with "
            "--data.validation-fraction above 0, on a folder that leaves images for it"
        )
    extractor = features.extractor
    class_ids = uniform_classes(prior.num_classes, count)
    drawn = draw_samples(tokenizer, prior, recipe, class_ids, seed=seed, batch=batch, watch=watch)
    samples = Described.cat([Described.of(each.images, extractor) for each in drawn])
    held_out, known = _compared(data, count, seed)
    validation = describe_images(data.validation, held_out, extractor, batch=batch, watch=watch, what="validation")
    decoded = _decoded(tokenizer, data.validation, held_out, extractor, batch, watch)
    copies = _decoded(tokenizer, data.train, known, extractor, batch, watch)
    every = Described.cat([samples, decoded, copies, validation])
    found = nearest_training(every, data.train, extractor, mirror=mirror, batch=batch, watch=watch)
    record: Record = {"kind": "memorisation", "n": count, "split": "validation", "n_validation": len(held_out)}
    record |= {"n_training": len(data.train), "training_views": "center", "mirrored": mirror, "seed": seed}
    record |= {"features": None, "features_hash": None, "reason": features.reason}
    if extractor is not None:
        record |= {"features": extractor.name, "features_hash": extractor.hash}
    record |= {"trained_on_features": features.trained_on, "recipe": recipe.to_dict()}
    for name in ("coarse", "features"):
        sizes = [count, len(held_out), len(known), len(held_out)]
        sides = torch.split(found[name].distance, sizes) if name in found else [None] * 4
        record |= compare_nearest(*sides[:3], name=name, seed=seed) | _spread(f"{name}_undecoded", sides[3])
    record |= _set_distances(samples, validation, data.train, known, extractor, seed, batch)
    coarse, held = found["coarse"][:count], found["coarse"][count : count + len(held_out)]
    record["closest"] = [
        {"seed": seed + row, "training_index": int(coarse.index[row]), "distance": float(coarse.distance[row])}
        for row in _first(coarse)
    ]
    own = [_again(tokenizer, prior, recipe, class_ids, row, seed) for row in _first(coarse)]
    others = list(_through(tokenizer, center_batch(data.validation, held_out[_first(held)]).images))
    closest = Closest(_pairs(own, coarse, data.train), _pairs(others, held, data.train))
    same = int((found["coarse"].distance[-len(held_out) :] == 0).sum())
    note = f"validation images with the coarse pixels of a training image: {same}; the split may hold copies"
    return record | {"notes": [note] * (same > 0)}, closest


def _compared(data: Data, count: int, seed: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """At most `count` held-out images, and as many training images for copies, where there are so many."""
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
    """The `coarse` figures of samples that are drawn already; the same control and held-out images as in
    `evaluate_memorisation` with as many."""
    held_out, known = _compared(data, len(samples), seed)
    decoded = _decoded(tokenizer, data.validation, held_out, None, batch, watch)
    copies = _decoded(tokenizer, data.train, known, None, batch, watch)
    every = Described.cat([samples, decoded, copies])
    found = nearest_training(every, data.train, None, mirror=mirror, batch=batch, watch=watch)
    sides = torch.split(found["coarse"].distance, [len(samples), len(held_out), len(known)])
    sizes = {"n": len(samples), "n_validation": len(held_out), "n_training": len(data.train), "mirrored": mirror}
    return sizes | compare_nearest(*sides, name="coarse", seed=seed)


def describe_images(
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    extractor: FeatureExtractor | None = None,
    *,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    what: str = "images",
) -> Described:
    """The center crops of the images at `indices`, as points."""
    crops = center_crops(images, indices, batch=batch, watch=watch, what=what)
    return Described.cat([Described.of(pictures, extractor) for pictures in crops])


def _decoded(
    tokenizer: Tokenizer,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    extractor: FeatureExtractor | None,
    batch: int,
    watch: ProgressCallback,
) -> Described:
    """The images as they come back from their tokens, as points."""
    crops = center_crops(images, indices, batch=batch, watch=watch, what="decoded images")
    return Described.cat([Described.of(_through(tokenizer, pictures), extractor) for pictures in crops])


def _through(tokenizer: Tokenizer, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    device = next(tokenizer.parameters()).device
    with evaluating(tokenizer):
        return to_uint8(tokenizer.decode(tokenizer.encode(to_model_range(images.to(device))).visual)).cpu()


def compare_nearest(
    samples: Float64[Tensor, " n"] | None,
    validation: Float64[Tensor, " m"] | None,
    copies: Float64[Tensor, " k"] | None,
    *,
    name: str = "coarse",
    seed: int = 0,
) -> Record:
    """Distances to the nearest training image: samples against validation images and copies; Nones without them.

    - `{name}_nearer`: how often a sample is nearer than a validation image (ties half), 0.5 if they are alike; its
      95 % interval draws both sides with replacement, 1000 times.
    - `{name}_share`: the part of the samples nearer than the `NEAR` quantile of the validation images, with Wilson's
      interval; `{name}_share_expected` if they are alike, `{name}_share_chance` the probability that then as many
      or more are, over samples and held-out images alike (exact).
    - `{name}_copies_share`: the same part of the copies, which says what share a run that only copies would have.
    - `{name}_quantiles`, `{name}_validation_quantiles`, `{name}_copies_quantiles`: `LEVELS` of each, and `…_median`.
    """
    if samples is None or validation is None or copies is None:
        figures = [f"{what}{end}" for what in ("nearer", "share", "copies_share") for end in ("", "_low", "_high")]
        record = dict.fromkeys(f"{name}_{what}" for what in (*figures, "threshold", "share_expected", "share_chance"))
        return record | _spread(name) | _spread(f"{name}_validation") | _spread(f"{name}_copies")
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
    return (
        record | _spread(name, samples) | _spread(f"{name}_validation", validation) | _spread(f"{name}_copies", copies)
    )


def _spread(prefix: str, values: Float64[Tensor, " n"] | None = None) -> Record:
    if values is None:
        return {f"{prefix}_median": None, f"{prefix}_quantiles": None}
    quantiles = np.quantile(values.numpy(), np.linspace(0, 1, LEVELS)).tolist()
    return {f"{prefix}_median": float(np.median(values.numpy())), f"{prefix}_quantiles": quantiles}


def chance_of_near(near: int, samples: int, rank: int, validation: int) -> float:
    """How likely `near` or more of the samples lie below the `rank`-th smallest validation distance if all are alike.

    Then every order of all is as likely as any other: so many do where fewer than `rank` of the first
    `near + rank − 1` are validation images, a hypergeometric probability.
    """
    first = near + rank - 1
    ways = sum(math.comb(validation, held) * math.comb(samples, first - held) for held in range(min(rank, first + 1)))
    return min(1.0, ways / math.comb(samples + validation, first))


def _nearer(samples: Float64[Tensor, " n"], ordered: Float64[Tensor, " m"], name: str, seed: int) -> Interval:
    """How often a sample is nearer than a validation image, ties half."""
    # Of each sample, how many validation images are farther or as far: drawn again, these become weighted counts.
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


def _set_distances(
    samples: Described,
    validation: Described,
    train: ImageSet,
    known: Int64[np.ndarray, " k"],
    extractor: FeatureExtractor | None,
    seed: int,
    batch: int,
) -> Record:
    """Kernel and Fréchet distance of the samples to validation and to `known` training images; Nones without them."""
    sides = [f"{side}_{what}" for side in ("validation", "training") for what in ("kid", "kid_low", "kid_high", "fd")]
    record: Record = dict.fromkeys([*sides, "kid_name", "fd_name", "n_distance", "indicative"])
    if extractor is None or samples.features is None or validation.features is None:
        return record
    count = len(known)
    if min(len(samples), count) < LEAST:
        return record
    training = describe_images(train, known, extractor, batch=batch).features
    assert training is not None
    for side, features in (("validation", validation.features), ("training", training)):
        kid = kernel_distance(samples.features, features[:count], seed=seed)
        record |= {f"{side}_kid": kid.value, f"{side}_kid_low": kid.low, f"{side}_kid_high": kid.high}
        record[f"{side}_fd"] = frechet_from_moments(*moments_of(samples.features), *moments_of(features[:count]))
    names = {"kid_name": measure_name("KID", extractor), "fd_name": measure_name("FD", extractor)}
    record |= {**names, "n_distance": count}
    return record | {"indicative": min(len(samples), count) < INDICATIVE}


def _first(near: Neighbours) -> list[int]:
    rows: list[int] = near.distance.argsort(stable=True)[:SHOWN].tolist()
    return rows


def _again(
    tokenizer: Tokenizer, prior: Prior, recipe: Recipe, class_ids: Int64[Tensor, " n"], row: int, seed: int
) -> UInt8[Tensor, "3 h w"]:
    """Sample `row` once more: cheaper than to keep all."""
    (sample,) = draw_samples(tokenizer, prior, recipe, class_ids[row : row + 1], seed=seed + row, batch=1)
    image: Tensor = sample.images[0]
    return image


def _pairs(images: list[UInt8[Tensor, "3 h w"]], near: Neighbours, train: ImageSet) -> list[Pair]:
    pairs = []
    for image, row in zip(images, _first(near), strict=True):
        training = center_batch(train, near.index[row : row + 1].numpy()).images[0]
        shown = training.flip(-1) if bool(near.mirrored[row]) else training
        pairs.append(Pair(image, shown, float(near.distance[row])))
    return pairs
