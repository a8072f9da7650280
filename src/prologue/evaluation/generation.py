"""How close samples come to real images, and whether the asked class is seen in them (METHOD §10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from prologue.data.order import center_batch
from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.metrics.intervals import wilson_interval
from prologue.evaluation.recognition import Classifier, judge_facts
from prologue.evaluation.reference import Reference
from prologue.evaluation.runs import ProgressCallback, Record, choose_images, evaluating, unwatched
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer, to_uint8
from prologue.sampling.decode import sample_sequences
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe
from prologue.utils.processes import ALONE, Processes
from prologue.utils.rng import check_seeds

UNEQUAL = 0.05
"""Part of the images, from which on a reference with unequal classes is noted."""


class Samples(NamedTuple):
    """A batch of samples on the CPU, lossless, and the class that each was asked to be."""

    images: UInt8[Tensor, "b 3 h w"]
    class_ids: Int64[Tensor, " b"]


def uniform_classes(num_classes: int, count: int) -> Int64[Tensor, " count"]:
    """The classes in turn, so that their counts differ by one at most; the null class where there are no classes."""
    return torch.arange(count) % max(1, num_classes)


def draw_samples(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    class_ids: Int64[Tensor, " n"],
    *,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
    processes: Processes = ALONE,
) -> Iterator[Samples]:
    """One image of each class id, batch by batch; image `i` has seed `seed + i`, as `Pipeline.generate` gives it.

    Of several processes each draws its share of the batches.

    Raises `SamplingError` for a recipe that cannot be satisfied, such as guidance on the null class, and for seeds that
    leave their range.
    """
    check_seeds(seed, len(class_ids))
    device = prior.token_embedding.weight.device
    for start in watch(processes.share(range(0, len(class_ids), batch)), "samples"):
        chunk = class_ids[start : start + batch]
        seeds = list(range(seed + start, seed + start + len(chunk)))
        with evaluating(tokenizer, prior):
            sequences = sample_sequences(prior, chunk.to(device), recipe, seeds)
            images = to_uint8(tokenizer.decode(prior.layout.unpack(sequences).visual)).cpu()
        yield Samples(images, chunk)


def evaluate_generation(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    reference: ImageSet | None,
    features: Features,
    *,
    count: int,
    seed: int = 0,
    batch: int = 64,
    class_names: Sequence[str] = (),
    classifier: Classifier | None = None,
    watch: ProgressCallback = unwatched,
    statistics: Reference | None = None,
    keep: Callable[[Samples], None] | None = None,
    processes: Processes = ALONE,
) -> Record:
    """`count` samples with uniform labels against center crops of training images `reference`.

    The reference is `count` images at random, or all where there are not more; both numbers are stated. A file
    `statistics` takes their place; without either, and without features (`Features()`), there are no distances. With
    `classifier`, also how often it recognises the asked class, whose ids must be its own. `keep` is shown every batch
    of samples. Raises `EvaluationError` for a count below 1, and `SamplingError` as `draw_samples` does.
    """
    if count < 1:
        raise EvaluationError(f"count must be at least 1, not {count}")
    class_ids = uniform_classes(prior.num_classes, count)
    distances = Distances(features, statistics, of_samples=True, processes=processes)
    seen: list[Tensor] = []
    drawn = draw_samples(tokenizer, prior, recipe, class_ids, seed=seed, batch=batch, watch=watch, processes=processes)
    for samples in drawn:
        distances.add_measured(samples.images)
        if classifier is not None:
            seen.append(classifier.classify(samples.images))
        if keep is not None:
            keep(samples)
    compared = reference if features.extractor is not None and statistics is None else None
    indices = np.arange(0) if compared is None else choose_images(len(compared), count, seed, "reference")
    if compared is not None:
        for start in watch(processes.share(range(0, len(indices), batch)), "training images"):
            distances.add_reference(center_batch(compared, indices[start : start + batch]).images)
    distances.add_reference_file(batch, watch)
    record: Record = {"kind": "generation", "n": count, "classes": prior.num_classes}
    record |= {"n_reference": len(indices), "reference_split": "train", "reference_views": "center"}
    if statistics is not None:
        record |= statistics.facts() | {"n_reference": statistics.count, "reference_views": None}
    record |= distances.record(seed)
    if compared is not None:
        distances.notes.extend(unequal_classes(compared, prior.num_classes))
    record |= {"recipe": recipe.to_dict(), "guided": recipe.guidance.active, "seed": seed}
    recognition = None
    if classifier is not None:
        own = torch.cat(seen) if seen else torch.empty(0, dtype=torch.int64)
        recognition = recognised_classes(class_ids, processes.gather(own[:, None])[:, 0], class_names)
        recognition |= judge_facts(classifier)
    return record | {"recognition": recognition, "notes": distances.notes}


def unequal_classes(reference: ImageSet, num_classes: int) -> list[str]:
    """A note where a twentieth or more of the images would have to change class for all classes to be equal."""
    if num_classes < 2 or not len(reference):
        return []
    counts = np.bincount(reference.labels, minlength=num_classes)
    moved = np.abs(counts / counts.sum() - 1 / num_classes).sum() / 2
    if moved < UNEQUAL:
        return []
    return [
        f"the classes of the reference are not equally frequent ({counts.min()} to {counts.max()} images) and those of "
        "the samples are: this part of the distance no model can mend, so compare on the same images only"
    ]


def recognised_classes(
    asked: Int64[Tensor, " n"], seen: Int64[Tensor, " n"], class_names: Sequence[str] = ()
) -> Record:
    """For how many samples the classifier sees the asked class, in all and by class, with 95 % Wilson intervals."""
    right = asked == seen
    record: Record = wilson_interval(int(right.sum()), len(asked)).fields("rate")
    record |= {"n": len(asked), "recognised": int(right.sum()), "by_class": []}
    for class_id in sorted(set(asked.tolist())):
        of_class = right[asked == class_id]
        name = class_names[class_id] if class_id < len(class_names) else str(class_id)
        counts = {"class": name, "class_id": class_id, "n": len(of_class), "recognised": int(of_class.sum())}
        record["by_class"].append(counts | wilson_interval(int(of_class.sum()), len(of_class)).fields("rate"))
    return record


def possible_recipe(recipe: Recipe, prior: Prior) -> Recipe:
    """A stored recipe without its guidance where the prior has no class to lean on."""
    return recipe if prior.num_classes else recipe.replace(guidance=Guidance.none())
