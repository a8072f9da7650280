"""What the demo measures of a finished run: a recipe is chosen with few samples, then everything with all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import Data
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.features import ShapesExtractor
from prologue.evaluation.generation import evaluate_generation, recognised_classes
from prologue.evaluation.likelihood import encode_images, evaluate_likelihood
from prologue.evaluation.recognition import Classifier
from prologue.evaluation.reconstruction import evaluate_reconstruction
from prologue.evaluation.runs import ProgressCallback, Record, Split, evaluating, unwatched
from prologue.models.sequence import TokenIds
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.models.weights import WEIGHTS, file_hash
from prologue.pipeline import Pipeline
from prologue.sampling.recipe import Recipe
from prologue.studies.demo import recipe as options
from prologue.studies.demo.ledger import Ledger
from prologue.studies.demo.plan import Sizes
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.utils.rng import derive_seed

CHOICE_RULE = (
    "the classifier's recognition rate; among recipes within one standard error of the best, the lowest KID-Shapes"
)


@dataclass(frozen=True)
class Subject:
    """A finished run that is measured, under the name that its records carry."""

    name: str
    run: RunFolder
    pipeline: Pipeline
    data: Data

    @property
    def weights(self) -> dict[str, str]:
        folders = {"tokenizer": self.run.tokenizer_folder, "prior": self.run.prior_folder}
        return {part: file_hash(folder / WEIGHTS) for part, folder in folders.items()}


Measures = dict[str, Record]
"""`choice`, `reconstruction`, `recognition`, `guided`, `unguided`, `likelihood` of one run."""


def measure(subject: Subject, sizes: Sizes, ledger: Ledger, progress: Progress) -> Measures:
    """Measure everything, except what the ledger has already, and store the chosen recipe in the run's manifest."""
    features, watch = Features.open("shapes", "shapes"), watched(progress)
    tokenizer, prior = subject.pipeline.tokenizer, subject.pipeline.prior
    seed, names = subject.run.config.seed, subject.data.class_names
    weights = subject.weights
    classifier = features.extractor
    assert isinstance(classifier, ShapesExtractor)

    def generation(recipe: Recipe, count: int, first_seed: int, shown: ProgressCallback) -> Record:
        return evaluate_generation(
            tokenizer, prior, recipe, subject.data.train, features,
            count=count, seed=first_seed, class_names=names, classifier=classifier, watch=shown,
        )  # fmt: skip

    def get(name: str, make: Callable[[], Record], **inputs: Any) -> Record:
        return ledger.get(f"{subject.name}/{name}", {"weights": weights, "seed": seed, **inputs}, make)

    def choose() -> Record:
        # Other seeds than those that the result is measured on: a choice must not be judged by its own samples.
        first = derive_seed(seed, "demo", "choice") % 2**31
        return choose_recipe(
            lambda recipe: generation(recipe, sizes.choice_samples, first, unwatched), watched(progress)
        )

    choice = get("choice", choose, samples=sizes.choice_samples, candidates=[r.to_dict() for r in _candidates()])
    recipes = {kind: Recipe.from_dict(choice[kind]) for kind in ("chosen", "guided", "unguided")}
    subject.pipeline.recipe = recipes["chosen"]
    subject.pipeline.manifest.save(subject.run.path)
    measured: Measures = {"choice": choice}
    for kind in ("guided", "unguided"):
        measured[kind] = get(
            kind,
            lambda kind=kind: generation(recipes[kind], sizes.samples, seed, watch),  # type: ignore[misc]
            recipe=recipes[kind].to_dict(),
            samples=sizes.samples,
        )
    validation, count = subject.data.validation, sizes.measured_images
    indices = np.arange(min(count, len(validation)))
    tokens: list[TokenIds] = []

    def encoded() -> TokenIds:
        if not tokens:
            tokens.append(encode_images(tokenizer, validation, indices, watch=watch))
        return tokens[0]

    measured["reconstruction"] = get(
        "reconstruction",
        lambda: evaluate_reconstruction(
            tokenizer, Split("validation", validation), features, count=count, seed=seed, revives=True, watch=watch
        ),
        images=count,
    )
    measured["recognition"] = get(
        "recognition",
        lambda: recognise_reconstructions(tokenizer, encoded(), subject.data, indices, classifier),
        images=count,
    )
    labels = center_batch(validation, indices).labels
    measured["likelihood"] = get(
        "likelihood",
        lambda: evaluate_likelihood(
            prior,
            encoded(),
            labels,
            image_size=tokenizer.config.image_size,
            seed=seed,
            starts_from_data=True,
            watch=watch,
        ),
        images=count,
    )
    return measured


def choose_recipe(evaluate: Callable[[Recipe], Record], watch: ProgressCallback = unwatched) -> Record:
    """The best candidate of all, of the guided and of the unguided ones, by `CHOICE_RULE`; deterministic."""
    tried = []
    candidates = _candidates()
    for number in watch(range(len(candidates)), "choosing a recipe"):
        recipe = candidates[number]
        record = evaluate(recipe)
        rate, n = record["recognition"]["rate"], record["n"]
        tried.append(
            {"recipe": recipe.to_dict(), "guided": recipe.guidance.active, "n": n, "rate": rate, "kid": record["kid"]}
        )
    return {
        "kind": "choice",
        "measure": CHOICE_RULE,
        "candidates": tried,
        "chosen": _best(tried)["recipe"],
        "guided": _best([each for each in tried if each["guided"]])["recipe"],
        "unguided": _best([each for each in tried if not each["guided"]])["recipe"],
    }


def _candidates() -> Sequence[Recipe]:
    return (*options.UNGUIDED, *options.GUIDED)


def _best(tried: Sequence[Record]) -> Record:
    top = max(each["rate"] for each in tried)
    error = (top * (1 - top) / tried[0]["n"]) ** 0.5
    near = [each for each in tried if each["rate"] >= top - error]
    return min(near, key=lambda each: float("inf") if each["kid"] is None else float(each["kid"]))


def recognise_reconstructions(
    tokenizer: Tokenizer, tokens: TokenIds, data: Data, indices: np.ndarray, classifier: Classifier
) -> Record:
    """How often the classifier recognises the class in reconstructions, and in the originals themselves."""
    device = next(tokenizer.parameters()).device
    seen: list[Tensor] = []
    seen_originals: list[Tensor] = []
    for start in range(0, len(indices), 64):
        with evaluating(tokenizer):
            visual = tokens[slice(start, start + 64)].visual.to(device)
            seen.append(classifier.classify(to_uint8(tokenizer.decode(visual)).cpu()))
        seen_originals.append(classifier.classify(center_batch(data.validation, indices[start : start + 64]).images))
    labels = center_batch(data.validation, indices).labels
    record = recognised_classes(labels, torch.cat(seen), data.class_names)
    originals = recognised_classes(labels, torch.cat(seen_originals))
    return {
        "kind": "recognition of reconstructions",
        "split": "validation",
        **record,
        "originals_rate": originals["rate"],
    }


def watched(progress: Progress) -> ProgressCallback:
    """Shows the steps of an evaluation as a stage."""

    def watch(steps: Sequence[int], what: str) -> Iterable[int]:
        progress.begin(what, 0, len(steps), 1)
        try:
            for number, step in enumerate(steps):
                yield step
                progress.advance(number + 1)
        finally:
            progress.end()

    return watch
