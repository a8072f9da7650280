"""The measurements of one finished run. Each is stored as soon as it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from prologue.config import Precision
from prologue.data.source import Data, ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.codes import encode_images, prologue_vectors, visual_vectors
from prologue.evaluation.distances import measure_name
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import FeatureExtractor, OwnExtractor
from prologue.evaluation.kinds.generation import evaluate_generation
from prologue.evaluation.kinds.layout import evaluate_layout
from prologue.evaluation.kinds.likelihood import evaluate_likelihood
from prologue.evaluation.kinds.probe import check_classes
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction, recognise_reconstructions
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.metrics.linear import fit_linear
from prologue.evaluation.nearest import Described, compare_samples
from prologue.evaluation.recipe_search import Request, measure_recipe, reference_features, run_sweep
from prologue.evaluation.recognition import Classifier, fit_judge, shipped_classifier
from prologue.evaluation.runs import ProgressCallback, Record, Split, choose_images, unwatched
from prologue.evaluation.samples import Samples, samples_picture
from prologue.evaluation.store import Store
from prologue.evaluation.versions import VERSIONS
from prologue.models.prior import Prior
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer
from prologue.sampling.recipe import Recipe
from prologue.studies.reproduce.pictures import resampled_picture, save_picture
from prologue.studies.reproduce.scales import Scale
from prologue.utils.rng import derive_seed

KINDS = ("features", "reconstruction", "generation", "likelihood", "probe", "layout", "memorisation", "sweep")
"""Kinds of results in a study. Results of several versions of these never share a table."""
SAMPLINGS = ("unguided", "guided")


@dataclass(frozen=True)
class Bench:
    """The images, features and sample sizes that all runs of a study are measured with."""

    scale: Scale
    data: Data
    features: Features
    source: str
    pictures: Path
    """The folder of the pictures."""
    precision: Precision
    """The precision of all trainings."""

    @property
    def extractor(self) -> FeatureExtractor:
        assert self.features.extractor is not None, "a study has features"
        return self.features.extractor

    @cached_property
    def classifier(self) -> Classifier | None:
        """The shipped classifier of embedded images, else one that is fitted to the training images."""
        shipped = shipped_classifier(self.source, self.data.class_names)
        if shipped is not None:
            return self.extractor if isinstance(self.extractor, OwnExtractor) else shipped
        if self.data.num_classes < 2:
            return None
        return fit_judge(self.extractor, self.data, count=self.scale.measured_images, batch=self.scale.batch)

    @cached_property
    def held_out(self) -> Float[Tensor, "n d"]:
        """Features of the held-out images that recipes are chosen on. Samples are compared with training images."""
        count, batch = self.scale.measured_images, self.scale.batch
        return reference_features(self.extractor, self.data.validation, count, batch=batch)

    @property
    def samples(self) -> int:
        """Number of samples for gFD and gKID. More than twice the training images would add no information."""
        return min(self.scale.samples, 2 * len(self.data.train))

    def validation_indices(self, count: int, name: str) -> Int64[np.ndarray, " n"]:
        return choose_images(len(self.data.validation), count, 0, f"reproduce {name}")


@dataclass(frozen=True)
class Models:
    """The finished models of a run."""

    tokenizer: Tokenizer
    prior: Prior
    seed: int
    weights: dict[str, str]
    """sha256 of the weight files."""
    piece: str
    """The name of the piece, which its pictures carry."""


def measure(
    models: Models,
    bench: Bench,
    store: Store,
    *,
    baseline: Prior | None,
    watch: ProgressCallback = unwatched,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, Record | None]:
    """All records of a run by name, each with its `seconds`; None for a measurement that does not apply.

    A record has only a `reason` if the images do not allow the measurement. `baseline` is a prior without a prologue on
    the same visual ids, which the gain is measured against. `before` is called before each new measurement.
    """
    scale, data = bench.scale, bench.data
    facts = {"weights": models.weights, "seed": models.seed, "versions": {kind: VERSIONS[kind] for kind in KINDS}}

    def get(name: str, make: Callable[[], Record], **inputs: Any) -> Record:
        def made() -> Record:
            before(name)
            try:
                return make()
            except EvaluationError as error:
                if name not in ("probe", "layout"):
                    raise
                return {"kind": name, "reason": str(error)}

        result = store.get(name, facts | inputs, made)
        return result.record | {"seconds": result.provenance["seconds"]}

    records: dict[str, Record | None] = {
        "reconstruction": get(
            "reconstruction",
            lambda: evaluate_reconstruction(
                models.tokenizer, Split("validation", data.validation), bench.features,
                count=scale.measured_images, batch=scale.batch, revives=True, watch=watch,
            ),
            images=scale.measured_images,
        )
    }  # fmt: skip
    records |= _sampled(models, bench, get, watch)
    indices = bench.validation_indices(scale.measured_images, "measured")
    encoded: list[TokenIds] = []

    def tokens() -> TokenIds:
        if not encoded:
            encoded.append(encode_images(models.tokenizer, data.validation, indices, batch=scale.batch, watch=watch))
        return encoded[0]

    classifier = bench.classifier
    records |= dict.fromkeys(("recognition", "probe", "layout"))
    if classifier is not None:
        records["recognition"] = get(
            "recognition",
            lambda: recognise_reconstructions(
                models.tokenizer, data.validation, indices, classifier, data.class_names, batch=scale.batch
            ),
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
    if data.num_classes > 1:
        records["probe"] = get(
            "probe", lambda: probe(models, bench, tokens(), indices, watch), images=scale.probe_images
        )
    if models.prior.layout.has_prologue:
        sampled = records["unguided"]
        assert sampled is not None
        recipe = Recipe.from_dict(sampled["recipe"])
        records["layout"] = get("layout", lambda: _layout(models, bench, recipe, watch), images=scale.layout_images)
    return records


def _sampled(
    models: Models, bench: Bench, get: Callable[..., Record], watch: ProgressCallback
) -> dict[str, Record | None]:
    """The recipes that the sweeps choose, and the measurements of samples with them."""
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
    """The recipe whose samples are nearest to held-out images, by the leading distance at their number."""
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
    """Distances of samples to the training images, and memorisation."""
    points: list[Described] = []

    def keep(samples: Samples) -> None:
        if not points:
            kind = "guided" if recipe.guidance.active else "unguided"
            picture = samples_picture(samples.images, bench.data.class_names)
            save_picture(picture, bench.pictures, models.piece, kind)
        points.append(Described.of(samples.images, None))

    # All variants of a seed share these sampling seeds. The recipe was chosen with others.
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
    """Top-1 of linear classifiers on the codes of the first visual tokens and of the prologue, if there is one.

    All variants use as many visual tokens as the scale has prologue tokens, so that all inputs have one size.
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
    """The class ids of the images, or the null class without classes."""
    labels = torch.from_numpy(images.labels[indices].astype(np.int64))
    return labels if prior.num_classes else torch.full_like(labels, prior.null_class)
