"""`prologue evaluate layout`: distances between images sampled from one prologue, and from different prologues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from PIL import Image
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, to_pil
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.base import (
    FeaturesOption,
    Kind,
    Measurement,
    Options,
    Prepared,
    Row,
    SampledSubject,
    images_sentence,
    row,
)
from prologue.evaluation.metrics.coarse import SIDE, coarse_pixels
from prologue.evaluation.metrics.intervals import missing_fields
from prologue.evaluation.recognition import Classifier, shipped_classifier
from prologue.evaluation.runs import ProgressCallback, Record, evaluating, unwatched
from prologue.evaluation.samples import draw_samples, possible_recipe
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.pipeline import Pipeline
from prologue.report.figures import COLOURS, INK, error_bars, panels, picture_of, style_axes
from prologue.sampling.flags import recipe_words
from prologue.sampling.recipe import Recipe
from prologue.utils.progress import progress
from prologue.utils.rng import numpy_stream

Metric = Callable[[Float64[Tensor, "m d"]], Float64[Tensor, "m m"]]
SHOWN = 10
"""Prologues in the picture."""
_SHOWN_SAMPLES = 6
MOST_OF_A_CLASS = 4096
"""Images of a class of which all pairs are compared; bounds the memory."""
_DRAWS = 1000
_SHUFFLES = 200
_ENDS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(Options):
    count: int = 64
    """Number of held-out images, chosen at random, whose prologues are sampled from."""
    per: int = 4
    """Images sampled from each prologue."""
    features: FeaturesOption = "auto"


class Layout(Kind[LayoutOptions]):
    """How similar images from one prologue are."""

    summary = "how similar images are that are sampled from one prologue"
    options = LayoutOptions

    def prepare(self, options: LayoutOptions) -> Prepared:
        subject = SampledSubject.open(options, prologue=True)
        features = subject.features(options.features)
        pipeline = subject.pipeline
        indices = subject.choose(options.count, "layout")
        class_ids, notes = subject.classes(indices)
        recipe = possible_recipe(pipeline.recipe, subject.prior)

        def measure() -> Measurement:
            record, shown = evaluate_layout(
                subject.tokenizer,
                subject.prior,
                recipe,
                subject.split.images,
                indices,
                class_ids,
                features,
                per=options.per,
                split=subject.split.name,
                classifier=shipped_classifier(subject.images.source, pipeline.class_names, subject.device),
                seed=options.seed,
                batch=options.batch,
                watch=progress,
            )
            return Measurement(
                subject.noted(record, *notes), {"resamples": _grid(shown, pipeline), "ratio": ratio_chart(record)}
            )

        origin = subject.facts() | features.facts() | {"recipe": recipe.to_dict()}
        return Prepared(options, origin, measure)

    def rows(self, record: Record) -> Iterator[Row]:
        for name, label in _distances(record):
            style = ".1%" if name == "verdict" else ".4g"
            unit = {"verdict": "differs", "coarse": "RMS 0…255"}.get(name, "RMS")
            yield row(f"{label}: within a prologue, {unit}", record, f"{name}_within", style)
            yield row(f"{label}: between prologues, {unit}", record, f"{name}_between", style)
            if record[f"{name}_ratio"] is not None:
                yield row(f"{label}: ratio", record, f"{name}_ratio", ".3f")
                yield row(f"{label}: ratio with prologues shuffled", record, f"{name}_shuffled", ".3f")

    def sentences(self, record: Record) -> Iterator[str]:
        yield images_sentence(record)
        yield (
            f"{record['per']} images are sampled from the prologue of each image, with its class. Distances between "
            "prologues are those of images of the same class. Intervals are over prologues."
        )
        yield f"Recipe: {recipe_words(record['recipe'])}."
        for name, label in _distances(record):
            yield f"{label}: {_verdict(record, name)}."
        if record["verdict_within"] is not None:
            yield "The predicted class is that of the shipped classifier; no other factor of shapes is measured."
        if record["features"] is None:
            yield f"There is no distance in features: {record['reason']}."
        if record["trained_on_features"]:
            yield f"The tokenizer was trained with these features ({record['features']})."


def _distances(record: Record) -> Iterator[tuple[str, str]]:
    """The distances in the record, with their labels."""
    side = record["coarse_side"]
    yield "coarse", f"{side}×{side} pixels"
    if record["features"] is not None:
        yield "features", f"{record['features']} features"
    if record["verdict_within"] is not None:
        yield "verdict", "predicted class"


def _verdict(record: Record, name: str) -> str:
    """What a ratio shows, given its interval and that of shuffled prologues."""
    ratio, low, high = (record[f"{name}_ratio{end}"] for end in ("", "_low", "_high"))
    if ratio is None:
        return "there is no ratio, because prologues of a class do not differ"
    if high < 1 and ratio < record[f"{name}_shuffled_low"]:
        often = "often predicted differently" if name == "verdict" else "far apart"
        return (
            f"two images from one prologue are {ratio:.2f} times as {often} as "
            f"two from different ones ({low:.2f} … {high:.2f}), so the prologue determines part of it"
        )
    if low > 1 and ratio > record[f"{name}_shuffled_high"]:
        return f"images from one prologue differ more than those of different ones ({ratio:.2f} times)"
    return f"the ratio {ratio:.2f} ({low:.2f} … {high:.2f}) is not distinguishable from shuffled prologues at this N"


class Shown(NamedTuple):
    """The first prologues: source images, their reconstructions, and the images sampled from each prologue."""

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
    """Sample `per` images from the prologue of each image at `indices`, and compare their distances.

    Distances are the RMS of coarse pixels (0…255) and of features; with `classifier`, also how often its predictions
    for two images differ. Image `i` has seed `seed + i`, as in `Pipeline.resample`; the null class has no guidance.

    Raises:
        EvaluationError: the prior has no prologue, `per` is below two, or no two prologues are of one class.
    """
    if not prior.layout.has_prologue:
        raise EvaluationError("the prior has no prologue to sample from: measure a run whose prior has one")
    if per < 2:
        raise EvaluationError(f"distances within a prologue need at least 2 images of each, not {per}")
    tokens = encode_images(tokenizer, images, indices, batch=batch, watch=watch)
    drawn = draw_samples(
        tokenizer,
        prior,
        possible_recipe(recipe, prior, class_ids),
        class_ids.repeat_interleave(per),
        prologue=tokens.prologue.repeat_interleave(per, 0),
        seed=seed,
        batch=batch,
        watch=watch,
        what="images from prologues",
    )
    parts: dict[str, list[Tensor]] = {"coarse": [], "features": [], "verdict": []}
    kept: list[Tensor] = []
    for pictures, _ in drawn:
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
    note = f"{alone} images are the only ones of their class and do not count in the ratios"
    record["notes"] = [note] * (alone > 0)
    with evaluating(tokenizer):
        device = next(tokenizer.parameters()).device
        decoded = to_uint8(tokenizer.decode(tokens.visual[:SHOWN].to(device))).cpu()
    count = len(decoded)
    samples = torch.cat(kept)
    samples = samples.view(count, per, *samples.shape[1:])
    return record, Shown(center_batch(images, indices[:count]).images, decoded, samples, class_ids[:count])


def rms(points: Float64[Tensor, "m d"]) -> Float64[Tensor, "m m"]:
    """Root mean squared difference of each two points."""
    centred = points - points.mean(0)  # against cancellation in products far from 0
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

    `{name}_within`, `{name}_between` and `{name}_ratio` have 95 % bootstrap intervals: 1000 samples of prologues with
    replacement within each class. `{name}_shuffled` is the mean ratio, with the range of 95 %, after a random
    permutation of the images within each class: the ratio of a prologue without information. All are None without
    points, the ratios also if nothing differs. If no class has two prologues, an `EvaluationError`.
    """
    fields = [f"{name}_{what}" for what in ("within", "between", "ratio", "shuffled")]
    record = missing_fields(*fields)
    if points is None:
        return record
    classes = _classes(class_ids)
    if not classes:
        raise EvaluationError("no two prologues are of the same class: measure more images with --count")
    rng = numpy_stream(seed, "evaluation", "layout", name)
    truth, sums, shuffled = np.zeros((1, 3)), np.zeros((_DRAWS, 3)), np.zeros((_SHUFFLES, 3))
    for rows in classes:
        if len(rows) * points.shape[1] > MOST_OF_A_CLASS:
            raise EvaluationError(
                f"{len(rows)} prologues of a class with {points.shape[1]} images each are more than the "
                f"{MOST_OF_A_CLASS} images that can be compared: lower --count or --per"
            )
        distances = metric(points[rows].flatten(0, 1)).numpy()
        once = np.ones((1, len(rows)))
        truth += _sums(distances, once)
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_DRAWS)
        sums += _sums(distances, weights.astype(np.float64))
        for number in range(_SHUFFLES):
            order = rng.permutation(len(distances))
            shuffled[number] += _sums(distances[np.ix_(order, order)], once)[0]
    drawn = sums[sums[:, 2] > 0]
    for field, value, values in zip(fields, _figures(truth), _figures(drawn), strict=False):
        record |= _with_ends(field, value, values)
    null = _figures(shuffled)[2]
    return record | _with_ends(fields[3], null.mean(keepdims=True), null)


def _classes(class_ids: Int64[Tensor, " n"]) -> list[Int64[Tensor, " m"]]:
    """The rows of every class that has two or more."""
    rows = [(class_ids == class_id).nonzero()[:, 0] for class_id in sorted(set(class_ids.tolist()))]
    return [each for each in rows if len(each) > 1]


def _sums(distances: Float64[np.ndarray, "m m"], weights: Float64[np.ndarray, "b n"]) -> Float64[np.ndarray, "b 3"]:
    """Weighted sums over the prologues of a class: mean distance within, mean distance to the others, and weights.

    Pairs of one prologue never count as between, even if the prologue was drawn twice.
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


def _grid(shown: Shown, pipeline: Pipeline) -> Image.Image:
    """One row per prologue: the image, its reconstruction, and images sampled from the prologue."""
    count = min(_SHOWN_SAMPLES, shown.samples.shape[1])
    rows = [
        [image, decoded, *to_pil(samples[:count])]
        for image, decoded, samples in zip(
            to_pil(shown.images), to_pil(shown.reconstructions), shown.samples.unbind(), strict=True
        )
    ]
    columns = ["image", "decoded", *(f"sample {number + 1}" for number in range(count))]
    return labelled_grid(rows, columns, [pipeline.class_name(int(class_id)) for class_id in shown.class_ids])


def ratio_chart(record: Record) -> Image.Image:
    """The ratios with their intervals, over the range of shuffled prologues."""
    known = [(name, label) for name, label in _distances(record) if record[f"{name}_ratio"] is not None]
    title = "Distance within a prologue / between prologues"
    figure, (axes,) = panels(1, (6.4, 1.7 + 0.75 * len(known)), title)
    style_axes(axes, x="ratio (1: the prologue determines nothing)")
    widest = 1.0
    for number, (name, _) in enumerate(known):
        value, low, high = (record[f"{name}_ratio{end}"] for end in ("", "_low", "_high"))
        chance = record[f"{name}_shuffled_low"], record[f"{name}_shuffled_high"]
        labels = ("prologues shuffled", "measured, 95 % interval") if number == 0 else (None, None)
        axes.barh(number, chance[1] - chance[0], 0.6, chance[0], color="#cbd5e1", label=labels[0])
        style: dict[str, Any] = {"fmt": "o", "markersize": 8, "capsize": 4, "color": COLOURS[0], "label": labels[1]}
        axes.errorbar([value], [number], xerr=error_bars([value], [low], [high]), **style)
        widest = max(widest, high, chance[1])
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(known)), [label for _, label in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * widest)
    figure.legend(frameon=False, labelcolor=INK, ncols=2, loc="outside lower center", fontsize=10)
    return picture_of(figure)
