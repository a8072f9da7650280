"""`prologue evaluate memorisation`: whether samples are nearer to training images than held-out images are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.pictures import labelled_grid, to_pil
from prologue.data.source import Data, ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.distances import INDICATIVE, measure_name, moments_of
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import FeatureExtractor
from prologue.evaluation.kinds.base import (
    FeaturesOption,
    Kind,
    Measurement,
    Options,
    Prepared,
    Row,
    SampledSubject,
    row,
    training_of,
    with_notes,
)
from prologue.evaluation.metrics.coarse import SIDE
from prologue.evaluation.metrics.frechet import frechet_from_moments
from prologue.evaluation.metrics.kid import LEAST, kernel_distance
from prologue.evaluation.nearest import (
    Described,
    Neighbours,
    compare_nearest,
    control_images,
    decoded,
    describe_images,
    nearest_training,
    nearness_sentences,
    spread,
)
from prologue.evaluation.runs import ProgressCallback, Record, unwatched
from prologue.evaluation.samples import draw_samples, possible_recipe, uniform_classes
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer
from prologue.report.figures import COLOURS, INK, add_legend, panels, picture_of, style_axes
from prologue.sampling.flags import recipe_words
from prologue.sampling.recipe import Recipe
from prologue.utils.progress import progress

_DEFAULT_SAMPLES = 1024
SHOWN = 6
"""Closest pairs in the picture."""
_CURVES = {
    "": "samples",
    "_validation": "held-out images, decoded",
    "_copies": "copies: training images, decoded",
    "_undecoded": "held-out images, not decoded",
}


@dataclass(frozen=True, kw_only=True)
class MemorisationOptions(Options):
    count: int = _DEFAULT_SAMPLES
    """Number of samples, with the classes in turn, and the largest number of held-out images."""
    features: FeaturesOption = "auto"


class Memorisation(Kind[MemorisationOptions]):
    """Distances of samples to the nearest training images, against those of held-out images and copies."""

    summary = "how near samples are to training images, compared with held-out images"
    options = MemorisationOptions

    def prepare(self, options: MemorisationOptions) -> Prepared:
        subject = SampledSubject.open(options)
        features = subject.features(options.features)
        images = subject.images
        if not len(images.data.validation):
            raise EvaluationError(
                f"{images.source} has no held-out images to compare the samples with: train with "
                "--data.validation-fraction above 0"
            )
        recipe = possible_recipe(subject.pipeline.recipe, subject.prior)

        def measure() -> Measurement:
            record, closest = evaluate_memorisation(
                subject.tokenizer,
                subject.prior,
                recipe,
                images.data,
                features,
                count=options.count,
                mirror=training_of(subject.info).data.flip,
                seed=options.seed,
                batch=options.batch,
                watch=progress,
            )
            return Measurement(with_notes(record, images.notes), _pictures(record, closest))

        return Prepared(options, subject.facts() | features.facts() | {"recipe": recipe.to_dict()}, measure)

    def rows(self, record: Record) -> Iterator[Row]:
        for name, label in _distances(record):
            yield f"{label}: median to the nearest, samples", f"{record[f'{name}_median']:.4g}", ""
            for side in ("validation", "undecoded", "copies"):
                yield f"  {_CURVES[f'_{side}']}", f"{record[f'{name}_{side}_median']:.4g}", ""
            yield row(f"{label}: nearer than held-out", record, f"{name}_nearer", ".1%")
            yield row(f"{label}: near", record, f"{name}_share", ".1%")
            yield "  expected without memorisation", f"{record[f'{name}_share_expected']:.1%}", ""
            yield row("  near, of copies", record, f"{name}_copies_share", ".1%")
        if record["validation_kid"] is not None:
            sides = (("validation", "held-out"), ("training", "training"))
            mark = ", indicative" if record["indicative"] else ""
            for side, label in sides:
                yield row(f"{record['kid_name']} to {label} images", record, f"{side}_kid", ".4g")
            for side, label in sides:
                yield f"{record['fd_name']} to {label} images{mark}", f"{record[f'{side}_fd']:.4g}", ""

    def sentences(self, record: Record) -> Iterator[str]:
        views = "center crops and their mirror images" if record["mirrored"] else "center crops"
        yield (
            f"N = {record['n']} samples with uniform classes, and {record['n_validation']} held-out images; the "
            f"nearest of all {record['n_training']} training images ({views}). Distances are RMS differences, of "
            "pixels on 0…255."
        )
        yield (
            "Held-out images are encoded and decoded, since samples come from the decoder. Copies are training images, "
            "encoded and decoded: the result of a run that only copies. Near is nearer than 99 % of the held-out "
            "images."
        )
        yield f"Recipe: {recipe_words(record['recipe'])}."
        for name, label in _distances(record):
            yield from nearness_sentences(record, name, label)
        if record["features"] is None:
            yield f"There is no distance in features: {record['reason']}."
        if record["validation_kid"] is not None:
            kid, count = record["kid_name"], record["n_distance"]
            if record["training_kid_high"] < record["validation_kid_low"]:
                yield f"{kid}: the samples are closer to the training images than to {count} held-out images."
            else:
                yield f"{kid}: the samples are not closer to the training images than to {count} held-out images."
        if record["trained_on_features"]:
            yield f"The tokenizer was trained with these features ({record['features']})."


def _distances(record: Record) -> Iterator[tuple[str, str]]:
    """The distances in the record, with their labels."""
    yield "coarse", f"{SIDE}×{SIDE} pixels"
    if record["features"] is not None:
        yield "features", f"{record['features']} features"


class Pair(NamedTuple):
    """An image, the nearest training image (mirrored if its mirror image is the nearest), and their distance."""

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
    """`count` samples with uniform classes, and at most as many validation images, against all training images.

    `compare_nearest` describes the figures of both distances, `coarse` and `features`; `mirror` includes mirrored
    training images. Validation images are encoded and decoded; `…_undecoded` are their distances without that. Copies,
    the control, are as many training images, encoded and decoded. Kernel and Fréchet distances are those of the samples
    to the validation images and to these training images.

    Raises:
        EvaluationError: `count` is below 1, or no images are held out.
        SamplingError: see `draw_samples`.
    """
    if count < 1:
        raise EvaluationError(f"count must be at least 1, not {count}")
    if not len(data.validation):
        raise EvaluationError(
            "no images are held out to compare the samples with: train with --data.validation-fraction above 0, on "
            "enough images"
        )
    shared: dict[str, Any] = {"batch": batch, "watch": watch}
    extractor = features.extractor
    class_ids = uniform_classes(prior.num_classes, count)
    drawn = draw_samples(tokenizer, prior, recipe, class_ids, seed=seed, **shared)
    samples = Described.cat([Described.of(each.images, extractor) for each in drawn])
    held_out, known = control_images(data, count, seed)
    through: dict[str, Any] = shared | {"decoded_by": tokenizer, "what": "decoded images"}
    validation = describe_images(data.validation, held_out, extractor, what="validation", **shared)
    own = describe_images(data.validation, held_out, extractor, **through)
    copies = describe_images(data.train, known, extractor, **through)
    every = Described.cat([samples, own, copies, validation])
    found = nearest_training(every, data.train, extractor, mirror=mirror, **shared)
    record: Record = {"kind": "memorisation", "n": count, "split": "validation", "n_validation": len(held_out)}
    record |= {"n_training": len(data.train), "training_views": "center", "mirrored": mirror, "seed": seed}
    record |= {"features": None, "features_hash": None, "reason": features.reason}
    if extractor is not None:
        record |= {"features": extractor.name, "features_hash": extractor.hash}
    record |= {"trained_on_features": features.trained_on, "recipe": recipe.to_dict()}
    for name in ("coarse", "features"):
        sizes = [count, len(held_out), len(known), len(held_out)]
        sides = torch.split(found[name].distance, sizes) if name in found else [None] * 4
        record |= compare_nearest(*sides[:3], name=name, seed=seed) | spread(f"{name}_undecoded", sides[3])
    record |= _set_distances(samples, validation, data.train, known, extractor, seed, batch)
    coarse, held = found["coarse"][:count], found["coarse"][count : count + len(held_out)]
    record["closest"] = [
        {"seed": seed + row, "training_index": int(coarse.index[row]), "distance": float(coarse.distance[row])}
        for row in _first(coarse)
    ]
    # Drawing a few samples again is cheaper than keeping all.
    again = torch.tensor(_first(coarse), dtype=torch.int64)
    redrawn = draw_samples(tokenizer, prior, recipe, class_ids[again], seeds=seed + again, batch=1)
    others = decoded(tokenizer, center_batch(data.validation, held_out[_first(held)]).images)
    closest = Closest(
        _pairs([each.images[0] for each in redrawn], coarse, data.train), _pairs(list(others), held, data.train)
    )
    same = int((found["coarse"].distance[-len(held_out) :] == 0).sum())
    note = f"{same} validation images have the coarse pixels of a training image: the split may contain copies"
    return record | {"notes": [note] * (same > 0)}, closest


def _set_distances(
    samples: Described,
    validation: Described,
    train: ImageSet,
    known: Int64[np.ndarray, " k"],
    extractor: FeatureExtractor | None,
    seed: int,
    batch: int,
) -> Record:
    """Kernel and Fréchet distance of the samples to validation and to `known` training images; None without them."""
    sides = [f"{side}_{what}" for side in ("validation", "training") for what in ("kid", "kid_low", "kid_high", "fd")]
    record: Record = dict.fromkeys([*sides, "kid_name", "fd_name", "n_distance", "indicative"])
    count = len(known)
    if samples.features is None or validation.features is None or min(len(samples), count) < LEAST:
        return record
    training = describe_images(train, known, extractor, batch=batch).features
    assert training is not None
    for side, features in (("validation", validation.features), ("training", training)):
        kid = kernel_distance(samples.features, features[:count], seed=seed)
        record |= {f"{side}_kid": kid.value, f"{side}_kid_low": kid.low, f"{side}_kid_high": kid.high}
        record[f"{side}_fd"] = frechet_from_moments(*moments_of(samples.features), *moments_of(features[:count]))
    names = {"kid_name": measure_name("KID", extractor), "fd_name": measure_name("FD", extractor)}
    return record | names | {"n_distance": count, "indicative": min(len(samples), count) < INDICATIVE}


def _first(near: Neighbours) -> list[int]:
    rows: list[int] = near.distance.argsort(stable=True)[:SHOWN].tolist()
    return rows


def _pairs(images: list[UInt8[Tensor, "3 h w"]], near: Neighbours, train: ImageSet) -> list[Pair]:
    pairs = []
    for image, index in zip(images, _first(near), strict=True):
        training = center_batch(train, near.index[index : index + 1].numpy()).images[0]
        shown = training.flip(-1) if bool(near.mirrored[index]) else training
        pairs.append(Pair(image, shown, float(near.distance[index])))
    return pairs


def _pictures(record: Record, closest: Closest) -> Mapping[str, Image.Image]:
    pairs = list(zip(closest.samples, closest.validation, strict=False))
    tiles = [to_pil(torch.stack([sample.image, sample.training, held.image, held.training])) for sample, held in pairs]
    labels = [f"RMS {sample.distance:.1f}, {held.distance:.1f}" for sample, held in pairs]
    return {
        "distances": distance_chart(record),
        "closest": labelled_grid(tiles, ["sample", "nearest", "held out", "nearest"], labels),
    }


def distance_chart(record: Record) -> Image.Image:
    """Cumulative distributions of the nearest distances, one panel per distance."""
    names = list(_distances(record))
    figure, drawn = panels(len(names), (6.4, 0.5 + 2.9 * len(names)), "Distances to the nearest training images")
    for number, (axes, (name, label)) in enumerate(zip(drawn, names, strict=True)):
        style_axes(axes, x=f"{label} (RMS{', 0…255' if name == 'coarse' else ''})", y="images, %")
        for place, (side, curve) in enumerate(_CURVES.items()):
            quantiles = record[f"{name}{side}_quantiles"]
            style = {"color": COLOURS[place], "linestyle": ("-", "--", ":", "-.")[place], "linewidth": 2.2}
            axes.plot(quantiles, np.linspace(0, 100, len(quantiles)), label=curve, **style)
        axes.axvline(record[f"{name}_threshold"], color=INK, linewidth=1, label="near")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        if number == 0:
            add_legend(axes, fontsize=10)
    return picture_of(figure)
