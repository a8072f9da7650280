"""What is measured of one finished run; every record is kept as soon as it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from prologue.config import Precision
from prologue.data.source import Data, ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.codes import prologue_vectors, visual_vectors
from prologue.evaluation.distances import measure_name
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import FeatureExtractor, OwnExtractor
from prologue.evaluation.generation import Samples, evaluate_generation
from prologue.evaluation.layout import evaluate_layout
from prologue.evaluation.likelihood import encode_images, evaluate_likelihood
from prologue.evaluation.memorisation import compare_samples
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.metrics.linear import fit_linear
from prologue.evaluation.nearest import Described
from prologue.evaluation.probe import check_classes
from prologue.evaluation.recognition import Classifier, fit_judge, shipped_classifier
from prologue.evaluation.reconstruction import evaluate_reconstruction
from prologue.evaluation.runs import ProgressCallback, Record, Split, choose_images, unwatched
from prologue.evaluation.sweep import Request, measure_recipe, reference_features, run_sweep
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer
from prologue.sampling.recipe import Recipe
from prologue.studies.demo.ledger import Ledger
from prologue.studies.demo.measure import recognise_reconstructions
from prologue.studies.reproduce.pictures import resampled_picture, samples_picture, save_picture
from prologue.studies.reproduce.scales import Scale
from prologue.utils.rng import derive_seed

SAMPLINGS = ("unguided", "guided")


@dataclass(frozen=True)
class Bench:
    """What all runs of a study are measured with: images, features, numbers of images."""

    scale: Scale
    data: Data
    features: Features
    source: str
    pictures: Path
    """Where pictures are kept."""
    precision: Precision
    """Of the products in all trainings."""

    @property
    def extractor(self) -> FeatureExtractor:
        assert self.features.extractor is not None, "a study has features"
        return self.features.extractor

    @cached_property
    def classifier(self) -> Classifier | None:
        """What recognises classes: the classifier of embedded images, elsewhere one fitted to the data's own images."""
        shipped = shipped_classifier(self.source, self.data.class_names)
        if shipped is not None:
            return self.extractor if isinstance(self.extractor, OwnExtractor) else shipped
        if self.data.num_classes < 2:
            return None
        return fit_judge(self.extractor, self.data, count=self.scale.measured_images, batch=self.scale.batch)

    @cached_property
    def held_out(self) -> Float[Tensor, "n d"]:
        """Features of the held-out images that recipes are chosen against; gFD and gKID are to training images."""
        count, batch = self.scale.measured_images, self.scale.batch
        return reference_features(self.extractor, self.data.validation, count, batch=batch)

    @property
    def samples(self) -> int:
        """Samples that gFD and gKID are measured on. Beyond twice the training images, these limit what can be told."""
        return min(self.scale.samples, 2 * len(self.data.train))

    def validation_indices(self, count: int, name: str) -> Int64[np.ndarray, " n"]:
        return choose_images(len(self.data.validation), count, 0, f"reproduce {name}")


@dataclass(frozen=True)
class Models:
    """A run's finished models."""

    tokenizer: Tokenizer
    prior: Prior
    seed: int
    weights: dict[str, str]
    """sha256 of their files: figures of other weights are made again."""
    piece: str
    """Whose pictures are kept under this name."""


class Pause(Protocol):
    """What happens between the measurements that are made, not those that are there already."""

    def before(self, name: str) -> None:
        """Raises where there is no time left for it."""

    def after(self) -> None:
        """A record was kept."""


def measure(
    models: Models,
    bench: Bench,
    ledger: Ledger,
    *,
    baseline: Prior | None,
    watch: ProgressCallback = unwatched,
    pause: Pause,
) -> dict[str, Record | None]:
    """All records of a run by name; None for those that it cannot have, the reason alone where the images do not do.

    `baseline` is a prior without a prologue on the same visual ids, which the gain is measured against.
    """
    scale, data = bench.scale, bench.data
    has_prologue = models.prior.layout.has_prologue

    def get(name: str, make: Callable[[], Record], **inputs: Any) -> Record:
        new = False

        def made() -> Record:
            nonlocal new
            pause.before(name)
            new = True
            return make()

        record = ledger.get(name, {"weights": models.weights, "seed": models.seed, **inputs}, made)
        if new:
            pause.after()
        return record

    def get_if_possible(name: str, make: Callable[[], Record], **inputs: Any) -> Record:
        """A record of the reason alone where the images do not allow the measurement."""

        def made() -> Record:
            try:
                return make()
            except EvaluationError as error:
                return {"kind": name, "reason": str(error)}

        return get(name, made, **inputs)

    split = Split("validation", data.validation)
    records: dict[str, Record | None] = {
        "reconstruction": get(
            "reconstruction",
            lambda: evaluate_reconstruction(
                models.tokenizer,
                split,
                bench.features,
                count=scale.measured_images,
                batch=scale.batch,
                revives=True,
                watch=watch,
            ),
            images=scale.measured_images,
        )
    }
    records |= _sampled(models, bench, get, watch)
    indices = bench.validation_indices(scale.measured_images, "measured")
    encoded: list[TokenIds] = []

    def tokens() -> TokenIds:
        if not encoded:
            encoded.append(encode_images(models.tokenizer, data.validation, indices, batch=scale.batch, watch=watch))
        return encoded[0]

    classifier = bench.classifier
    records["recognition"] = None
    if classifier is not None:
        records["recognition"] = get(
            "recognition",
            lambda: recognise_reconstructions(models.tokenizer, tokens(), data, indices, classifier),
            images=scale.measured_images,
        )
    class_ids = _class_ids(data.validation, indices, models.prior)
    records["likelihood"] = get(
        "likelihood",
        lambda: evaluate_likelihood(
            models.prior, tokens(), class_ids, image_size=models.tokenizer.config.image_size, baseline=baseline,
            seed=models.seed, batch=scale.batch, starts_from_data=True, watch=watch,
        ),
        images=scale.measured_images,
        gain=baseline is not None,
    )  # fmt: skip
    records["probe"] = None
    if data.num_classes > 1:
        records["probe"] = get_if_possible(
            "probe", lambda: probe(models, bench, tokens(), indices, watch), images=scale.probe_images
        )
    records["layout"] = None
    if has_prologue:
        sampled = records["unguided"]
        assert sampled is not None
        recipe = Recipe.from_dict(sampled["recipe"])
        records["layout"] = get_if_possible(
            "layout", lambda: _layout(models, bench, recipe, watch), images=scale.layout_images
        )
    return records


def _sampled(
    models: Models, bench: Bench, get: Callable[..., Record], watch: ProgressCallback
) -> dict[str, Record | None]:
    """The recipes that the sweeps chose, and what the samples drawn with them are worth."""
    scale = bench.scale
    records: dict[str, Record | None] = {}
    for kind in SAMPLINGS:
        guided = kind == "guided"
        records[kind] = records[f"choice_{kind}"] = None
        if guided and not models.prior.num_classes:
            continue
        tried = [recipe.to_dict() for recipe in scale.recipes(guided)]
        choice = get(
            f"choice_{kind}",
            lambda guided=guided: choose(models, bench, guided, watch),
            candidates=tried,
            samples=scale.sweep_samples,
        )
        recipe = Recipe.from_dict(choice["recipe"])
        records[f"choice_{kind}"] = choice
        records[kind] = get(
            kind,
            lambda recipe=recipe: _generated(models, bench, recipe, watch),
            recipe=recipe.to_dict(),
            samples=bench.samples,
        )
    return records


def choose(models: Models, bench: Bench, guided: bool, watch: ProgressCallback = unwatched) -> Record:
    """The recipe whose samples lie nearest to held-out images, by the distance that leads at their number."""
    scale = bench.scale
    recipes = scale.recipes(guided)

    def found(request: Request) -> Record:
        return measure_recipe(
            models.tokenizer, models.prior, request.recipe, bench.extractor, bench.held_out,
            count=request.count, seed=request.seed, batch=scale.batch,
        )  # fmt: skip

    seed = derive_seed(models.seed, "reproduce", "choice")
    plain = next((recipe for recipe in recipes if recipe.temperature == 1), recipes[0])
    points = run_sweep(found, recipes, plain, scale.sweep, seed=seed, watch=watch)
    final = [point for point in points if point.request.final]
    best = min(final, key=lambda point: point.distance)
    tried = [
        {"recipe": point.request.recipe.to_dict(), "n": point.request.count, "final": point.request.final}
        | {key: point.figures[key] for key in ("kid", "fd")}
        for point in points
    ]
    name = measure_name(best.figures["leads"].upper(), bench.extractor)
    return {"kind": "choice", "measure": name, "split": "validation", "recipe": best.request.recipe.to_dict(),
            "recipes": len(recipes), "tried": tried}  # fmt: skip


def _generated(models: Models, bench: Bench, recipe: Recipe, watch: ProgressCallback) -> Record:
    """Distances to training images, and how near to single ones the samples are."""
    points: list[Described] = []

    def keep(samples: Samples) -> None:
        if not points:
            kind = "guided" if recipe.guidance.active else "unguided"
            picture = samples_picture(samples.images, bench.data.class_names)
            save_picture(picture, bench.pictures, models.piece, kind)
        points.append(Described.of(samples.images, None))

    # Other seeds than those that the recipe was chosen on, and the same for all variants of a seed.
    first = derive_seed(models.seed, "reproduce", "samples") % 2**31
    record = evaluate_generation(
        models.tokenizer, models.prior, recipe, bench.data.train, bench.features, count=bench.samples,
        seed=first, batch=bench.scale.batch, class_names=bench.data.class_names, classifier=bench.classifier,
        watch=watch, keep=keep,
    )  # fmt: skip
    drawn = Described.cat(points)
    near = compare_samples(models.tokenizer, drawn, bench.data, seed=first, batch=bench.scale.batch, watch=watch)
    return record | {"memorisation": {key: value for key, value in near.items() if not key.endswith("quantiles")}}


def probe(
    models: Models, bench: Bench, test: TokenIds, indices: Int64[np.ndarray, " n"], watch: ProgressCallback
) -> Record:
    """Top-1 of linear classifiers on the codes of the first visual tokens and, where there are any, of the prologue.

    As many visual tokens as the scale's prologue has, in every variant: inputs of one dimension, one protocol.
    """
    scale, data = bench.scale, bench.data
    known = choose_images(len(data.train), scale.probe_images, 0, "reproduce probe")
    train = encode_images(models.tokenizer, data.train, known, batch=scale.batch, watch=watch)
    labels, asked = (
        torch.from_numpy(images.labels[rows].astype(np.int64))
        for images, rows in ((data.train, known), (data.validation, indices))
    )
    check_classes(labels, asked, data.class_names)
    n = len(asked)
    record: Record = {"kind": "probe", "n": n, "n_train": len(labels), "split": "validation"}
    record |= {"tokens": scale.prologue_tokens, "chance": float(torch.bincount(asked).max()) / n}
    for name in ("visual_first", "prologue") if train.prologue.shape[1] else ("visual_first",):
        known_codes, asked_codes = (_codes(models.tokenizer, ids, name, scale) for ids in (train, test))
        fitted = fit_linear(known_codes, labels, data.num_classes)
        right = int((fitted(asked_codes).argmax(1) == asked).sum())
        record |= wilson_interval(right, n).fields(name)
    return record


def _codes(tokenizer: Tokenizer, ids: TokenIds, name: str, scale: Scale) -> Float[Tensor, "n d"]:
    if name == "prologue":
        return prologue_vectors(tokenizer, ids.prologue).flatten(1)
    return visual_vectors(tokenizer, ids.visual[:, : scale.prologue_tokens]).flatten(1)


def _layout(models: Models, bench: Bench, recipe: Recipe, watch: ProgressCallback) -> Record:
    indices = bench.validation_indices(bench.scale.layout_images, "layout")
    class_ids = _class_ids(bench.data.validation, indices, models.prior)
    record, shown = evaluate_layout(
        models.tokenizer, models.prior, recipe, bench.data.validation, indices, class_ids, Features(),
        per=bench.scale.layout_per, seed=models.seed, batch=bench.scale.batch, watch=watch,
    )  # fmt: skip
    save_picture(resampled_picture(shown, bench.data.class_names), bench.pictures, models.piece, "resampled")
    return record


def _class_ids(images: ImageSet, indices: Int64[np.ndarray, " n"], prior: Prior) -> Int64[Tensor, " n"]:
    """The images' own classes; the null class where there are none."""
    labels = torch.from_numpy(images.labels[indices].astype(np.int64))
    return labels if prior.num_classes else torch.full_like(labels, prior.null_class)
