"""What a prologue fixes: how far images drawn from one prologue lie apart, against those of other prologues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.likelihood import encode_images
from prologue.evaluation.metrics.coarse import SIDE, coarse_pixels
from prologue.evaluation.recognition import Classifier
from prologue.evaluation.runs import ProgressCallback, Record, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import check_seeds, numpy_stream

Metric = Callable[[Float64[Tensor, "m d"]], Float64[Tensor, "m m"]]
SHOWN = 10
"""Prologues in the picture."""
MOST_OF_A_CLASS = 4096
"""Images of a class of which all pairs are compared: bounds the memory."""
_DRAWS = 1000
_SHUFFLES = 200
_ENDS = (0.025, 0.975)


class Shown(NamedTuple):
    """The first prologues: source images, their reconstructions, and the images drawn from each prologue."""

    images: UInt8[Tensor, "s 3 h w"]
    reconstructions: UInt8[Tensor, "s 3 h w"]
    samples: UInt8[Tensor, "s k 3 h w"]
    class_ids: Int64[Tensor, " s"]


def evaluate_layout(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    class_ids: Int64[Tensor, " n"],
    features: Features,
    *,
    per: int,
    split: str = "validation",
    classifier: Classifier | None = None,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> tuple[Record, Shown]:
    """Draw `per` images from the prologue of each image at `indices`, and compare their distances.

    Distances are RMS of coarse pixels (0…255) and, where there are features, of these; with `classifier`, also how
    often two images are taken for different classes. Raises `EvaluationError` without a prologue, for fewer than
    two images of a prologue, and where no two prologues are of one class.
    """
    if not prior.layout.has_prologue:
        raise EvaluationError(
            "a layout is kept by a prologue, and this run has none: measure a run with prologue tokens"
        )
    if per < 2:
        raise EvaluationError(f"distances within a prologue need at least 2 images of each, not {per}")
    tokens = encode_images(tokenizer, images, indices, batch=batch, watch=watch)
    parts: dict[str, list[Tensor]] = {"coarse": [], "features": [], "verdict": []}
    kept: list[Tensor] = []
    for pictures in _drawn(tokenizer, prior, recipe, tokens, class_ids, per, seed, batch, watch):
        parts["coarse"].append(coarse_pixels(pictures))
        if features.extractor is not None:
            parts["features"].append(features.extractor(pictures).double())
        if classifier is not None:
            parts["verdict"].append(classifier.classify(pictures).double()[:, None])
        kept.append(pictures[: max(0, SHOWN * per - sum(map(len, kept)))])
    record: Record = {"kind": "layout", "n": len(indices), "per": per, "split": split, "views": "center"}
    record |= {"coarse_side": SIDE, "features": None, "features_hash": None, "reason": features.reason}
    for name, metric in (("coarse", rms), ("features", rms), ("verdict", differs)):
        points = torch.cat(parts[name]).view(len(indices), per, -1) if parts[name] else None
        record |= compare_prologues(points, class_ids, name, metric, seed=seed)
    if features.extractor is not None:
        record |= {"features": features.extractor.name, "features_hash": features.extractor.hash}
    alone = len(class_ids) - sum(len(rows) for rows in _classes(class_ids))
    record |= {"recipe": recipe.to_dict(), "seed": seed, "trained_on_features": features.trained_on}
    record["notes"] = [f"{alone} images are the only ones of their class, and have no part in the ratios"] * (alone > 0)
    return record, _shown(tokenizer, images, indices, tokens, class_ids, torch.cat(kept), per)


def _drawn(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    per: int,
    seed: int,
    batch: int,
    watch: ProgressCallback,
) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
    """`per` images of every prologue in turn, on the CPU; image `i` has seed `seed + i`, as `Pipeline.resample` does.

    Guidance is left out for the null class.
    """
    layout, device = prior.layout, prior.token_embedding.weight.device
    if bool((class_ids == prior.null_class).any()):
        recipe = recipe.replace(guidance=Guidance.none())
    check_seeds(seed, len(tokens) * per)
    given = layout.pack_prologue(tokens.prologue)
    for start in watch(range(0, len(tokens) * per, batch), "images from prologues"):
        rows = torch.arange(start, min(start + batch, len(tokens) * per))
        seeds = (seed + rows).tolist()
        source = rows // per
        with evaluating(tokenizer, prior):
            drawn = sample_sequences(prior, class_ids[source].to(device), recipe, seeds, given[source].to(device))
            pictures = to_uint8(tokenizer.decode(layout.unpack(drawn).visual)).cpu()
        yield pictures


def _shown(
    tokenizer: Tokenizer,
    images: ImageSet,
    indices: Int64[np.ndarray, " n"],
    tokens: TokenIds,
    class_ids: Int64[Tensor, " n"],
    samples: UInt8[Tensor, "m 3 h w"],
    per: int,
) -> Shown:
    device = next(tokenizer.parameters()).device
    with evaluating(tokenizer):
        decoded = to_uint8(tokenizer.decode(tokens.visual[:SHOWN].to(device))).cpu()
    count = len(decoded)
    pictures = center_batch(images, indices[:count]).images
    return Shown(pictures, decoded, samples.view(count, per, *samples.shape[1:]), class_ids[:count])


def rms(points: Float64[Tensor, "m d"]) -> Float64[Tensor, "m m"]:
    """Root of the mean squared difference of each two points."""
    centred = points - points.mean(0)  # far from 0 the products would cancel
    distances: Tensor = torch.cdist(centred, centred) / points.shape[1] ** 0.5
    return distances


def differs(points: Float64[Tensor, "m 1"]) -> Float64[Tensor, "m m"]:
    """1 where two labels differ."""
    return (points != points.T).double()


def compare_prologues(
    points: Float64[Tensor, "n k d"] | None,
    class_ids: Int64[Tensor, " n"],
    name: str,
    metric: Metric = rms,
    *,
    seed: int = 0,
) -> Record:
    """Mean distance of two of a prologue's `k` images, of two images of different prologues of one class, their ratio.

    `{name}_within`, `{name}_between` and `{name}_ratio` with 95 % intervals: percentiles of 1000 samples of prologues
    with replacement within each class. `{name}_shuffled`: the mean ratio, and the range of 95 %, where images are
    dealt to prologues of their class at random, which is the ratio of a prologue that says nothing. All are None
    without points, the ratios also where nothing differs. Raises `EvaluationError` where no class has two prologues.
    """
    fields = [f"{name}_{what}" for what in ("within", "between", "ratio", "shuffled")]
    record: Record = {f"{field}{end}": None for field in fields for end in ("", "_low", "_high")}
    if points is None:
        return record
    classes = _classes(class_ids)
    if not classes:
        raise EvaluationError("no two prologues are of the same class: measure more images with --count")
    rng = numpy_stream(seed, "evaluation", "layout", name)
    truth, sums, shuffled = np.zeros(3), np.zeros((_DRAWS, 3)), np.zeros((_SHUFFLES, 3))
    for rows in classes:
        if len(rows) * points.shape[1] > MOST_OF_A_CLASS:
            raise EvaluationError(
                f"{len(rows)} prologues of a class with {points.shape[1]} images each are more than the "
                f"{MOST_OF_A_CLASS} images that can be compared: lower --count or --per"
            )
        distances = metric(points[rows].flatten(0, 1)).numpy()
        truth += _sums(distances, np.ones((1, len(rows))))[0]
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_DRAWS)
        sums += _sums(distances, weights.astype(np.float64))
        once = np.ones((1, len(rows)))
        for number in range(_SHUFFLES):
            order = rng.permutation(len(distances))
            shuffled[number] += _sums(distances[np.ix_(order, order)], once)[0]
    drawn = sums[sums[:, 2] > 0]
    for field, value, values in zip(fields, _figures(truth[None]), _figures(drawn), strict=False):
        record |= _with_ends(field, value, values)
    null = _figures(shuffled)[2]
    return record | _with_ends(fields[3], null.mean(keepdims=True), null)


def _classes(class_ids: Int64[Tensor, " n"]) -> list[Int64[Tensor, " m"]]:
    """The rows of every class that has two or more."""
    rows = [(class_ids == class_id).nonzero()[:, 0] for class_id in sorted(set(class_ids.tolist()))]
    return [each for each in rows if len(each) > 1]


def _sums(distances: Float64[np.ndarray, "m m"], weights: Float64[np.ndarray, "b n"]) -> Float64[np.ndarray, "b 3"]:
    """Of one class: weighted sums over prologues of the mean distance within and to the others, and the weights' sum.

    A prologue that is drawn twice is not another one: its own pairs never count as between.
    """
    count = weights.shape[1]
    per = len(distances) // count
    blocks = distances.reshape(count, per, count, per).sum((1, 3))
    within = np.diagonal(blocks) / (per * (per - 1))
    between = (blocks - np.diag(np.diagonal(blocks))) / per**2
    others = weights.sum(1, keepdims=True) - weights
    used = weights * (others > 0)
    to_others = (weights @ between) / np.where(others > 0, others, 1)
    return np.stack([used @ within, (used * to_others).sum(1), used.sum(1)], axis=1)


def _figures(sums: Float64[np.ndarray, "b 3"]) -> tuple[Float64[np.ndarray, " b"], ...]:
    within, between = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
    return within, between, np.divide(within, between, out=np.full_like(within, np.nan), where=between > 0)


def _with_ends(field: str, value: Float64[np.ndarray, " 1"], values: Float64[np.ndarray, " b"]) -> Record:
    known = values[np.isfinite(values)]
    if not np.isfinite(value[0]) or not len(known):
        return {}
    low, high = np.quantile(known, _ENDS)
    return {field: float(value[0]), f"{field}_low": float(low), f"{field}_high": float(high)}
