"""`prologue evaluate generation`: distances of samples to real images, and recognition of the class (METHOD §10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from tyro.conf import arg

from prologue.data.order import center_batch
from prologue.data.pictures import SampleArchive
from prologue.data.source import ImageSet
from prologue.errors import ConfigError, DataError, EvaluationError
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds._distances import (
    DistanceOptions,
    distance_rows,
    distance_sentences,
    reference_facts,
    reference_notes,
)
from prologue.evaluation.kinds.base import (
    SPLIT_WORDS,
    Kind,
    Measurement,
    NoFigure,
    Prepared,
    Row,
    facts,
    row,
    training_of,
    with_notes,
)
from prologue.evaluation.metrics.coarse import SIDE
from prologue.evaluation.nearest import BY_DEFAULT, Described, compare_samples, nearness_sentences
from prologue.evaluation.recognition import (
    Classifier,
    fit_judge,
    judge_facts,
    recognised_classes,
    shipped_classifier,
)
from prologue.evaluation.reference import Reference
from prologue.evaluation.runs import ProgressCallback, Record, RunImages, RunInfo, choose_images, unwatched
from prologue.evaluation.samples import Samples, draw_samples, possible_recipe, samples_picture, uniform_classes
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer
from prologue.pipeline import Pipeline
from prologue.sampling.flags import GUIDANCE_HELP, RecipeFlags, recipe_words
from prologue.sampling.recipe import Recipe
from prologue.utils.files import is_stream
from prologue.utils.options import OUTPUT_FILE
from prologue.utils.processes import ALONE, Processes
from prologue.utils.progress import progress

_DEFAULT_SAMPLES = 2048
UNEQUAL = 0.05
"""Part of the reference images that would have to change class; from it on a note says that classes are unequal."""
Keep = Callable[[Samples], None]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(RecipeFlags, DistanceOptions):
    count: int = _DEFAULT_SAMPLES
    """Number of samples, with the classes in turn; the Fréchet distance of fewer than 10000 is indicative."""

    judge: bool = False
    """Fit a linear classifier to features of training images, and count how often it recognises the class of a sample.
    For the embedded shapes a classifier is part of the package and always used."""

    samples_npz: Annotated[Path | None, arg(metavar="FILE.npz"), OUTPUT_FILE, NoFigure()] = None
    """File for the samples in ADM's format (`arr_0` images, `arr_1` class ids), for other evaluators."""

    def check(self) -> None:
        DistanceOptions.check(self)
        RecipeFlags.check(self)


class Generation(Kind[GenerationOptions]):
    """Samples with uniform classes against training images."""

    summary = "distances to training images; on shapes also whether the class is recognised"
    options = GenerationOptions
    epilog = GUIDANCE_HELP

    def prepare(self, options: GenerationOptions) -> Prepared:
        sampling = options.sampling()
        processes = Processes.join(options.device)
        _check_archive(options, processes)
        info = RunInfo.load(options.run, options.checkpoint)
        pipeline = Pipeline.from_pretrained(info.source, processes.device, options.dtype)
        size = pipeline.tokenizer.config.image_size
        features = options.open_features(info, pipeline.device, pipeline.manifest.trained_on)
        opened = _images(options, info, size)
        statistics = options.open_reference(features, size, "train")
        notes = _notes(opened, statistics)
        stored = possible_recipe(pipeline.recipe, pipeline.prior)
        if stored != pipeline.recipe and "guidance" not in sampling:
            notes = (*notes, "the stored guidance needs classes, and this run has none, so it is not used")
        recipe = stored.replace(**sampling)
        if opened is not None and options.judge and opened.data.num_classes != pipeline.prior.num_classes:
            raise ConfigError(
                f"--judge: the images have {opened.data.num_classes} classes and the run {pipeline.prior.num_classes}, "
                "so a classifier of the images does not know the run's classes: omit it, or give images of the run's "
                "classes with --data"
            )

        def classifier() -> Classifier | None:
            if opened is None:
                return None
            shipped = shipped_classifier(opened.source, pipeline.class_names, pipeline.device)
            if shipped is not None or not options.judge:
                return shipped
            return fit_judge(features.extractor, opened.data, seed=options.seed, batch=options.batch, watch=progress)

        def evaluated(keep: Keep) -> Record:
            return evaluate_generation(
                pipeline.tokenizer,
                pipeline.prior,
                recipe,
                None if opened is None else opened.reference(),
                features,
                count=options.count,
                seed=options.seed,
                batch=options.batch,
                class_names=pipeline.class_names,
                classifier=classifier(),
                watch=progress,
                statistics=statistics,
                keep=keep,
                processes=processes,
            )

        known = None if opened is None or not opened.own else opened.data
        compared = known is not None and len(known.validation) > 0 and len(known.train) < BY_DEFAULT
        compared = compared and processes.world == 1
        archive = options.samples_npz

        def measure() -> Measurement:
            _check_archive(options, processes)  # another process may have written it meanwhile
            points: list[Described] = []
            first: list[Samples] = []

            def keep(samples: Samples) -> None:
                if not first:
                    first.append(samples)
                if compared:
                    points.append(Described.of(samples.images, None))

            record = evaluated(keep) if archive is None else _archived(evaluated, keep, archive, options.count, size)
            if opened is not None and not opened.own and statistics is None:
                record["reference_split"] = "given"
            record["memorisation"] = None
            if points and known is not None:
                record["memorisation"] = compare_samples(
                    pipeline.tokenizer,
                    Described.cat(points),
                    known,
                    mirror=training_of(info).data.flip,
                    seed=options.seed,
                    batch=options.batch,
                    watch=progress,
                )
            picture = samples_picture(first[0].images, pipeline.class_names) if first else None
            return Measurement(with_notes(record, notes), {} if picture is None else {"samples": picture})

        origin = facts(info, options, opened, pipeline.device) | features.facts() | reference_facts(statistics)
        origin |= {"recipe": recipe.to_dict(), "memorisation": compared}
        return Prepared(options, origin, measure, writes=archive, anew=archive is not None)

    def rows(self, record: Record) -> Iterator[Row]:
        yield from distance_rows(record)
        recognition = record["recognition"]
        if recognition is not None:
            yield row("classifier recognises the class", recognition, "rate", ".1%")
            if "judge_rate" in recognition:
                yield row("  in held-out images", recognition, "judge_rate", ".1%")
            for part in recognition["by_class"]:
                yield row(f"  {part['class']}", part, "rate", ".1%")
        near = record.get("memorisation")
        if near is not None:
            yield row("nearer to training than held-out images", near, "coarse_nearer", ".1%")
            yield row("very near to training images", near, "coarse_share", ".1%")
            yield "  expected without memorisation", f"{near['coarse_share_expected']:.1%}", ""

    def sentences(self, record: Record) -> Iterator[str]:
        which = SPLIT_WORDS[record["reference_split"]]
        against = f" against {record['n_reference']} {which} images (center crops)" if record["n_reference"] else ""
        if record.get("reference") is not None:
            number = "" if record["n_reference"] is None else f" of {record['n_reference']} training images"
            against = f" against {record['reference']}{number}"
        yield f"N = {record['n']} samples with uniform classes{against}."
        yield f"Recipe: {recipe_words(record['recipe'])}."
        yield from distance_sentences(record)
        recognition = record["recognition"]
        if recognition is not None and "judge_n_train" in recognition:
            fitted = f"fitted to {recognition['judge_n_train']} training images"
            yield f"The classifier is {recognition['judge']}, {fitted}; chance is {1 / record['classes']:.1%}."
        if record.get("memorisation") is not None:
            yield from nearness_sentences(record["memorisation"], "coarse", f"Memorisation, {SIDE}×{SIDE} pixels")


def _images(options: GenerationOptions, info: RunInfo, size: tuple[int, int]) -> RunImages | None:
    """The images; None if they are not available and a reference replaces them."""
    try:
        return options.open_data(info, size)
    except (DataError, EvaluationError):
        if options.reference is None or options.judge or options.data is not None:
            raise
        return None


def _notes(opened: RunImages | None, statistics: Reference | None) -> tuple[str, ...]:
    if opened is not None:
        return (*opened.notes, *reference_notes(statistics, opened.data.fingerprint))
    missing = "the training images are not available, so the samples were not compared with them for memorisation"
    return (missing, *reference_notes(statistics, None))


def _check_archive(options: GenerationOptions, processes: Processes) -> None:
    """Refuse an archive that cannot be written."""
    file = options.samples_npz
    if file is None:
        return
    if not is_stream(file):
        if file.suffix != ".npz":
            raise ConfigError(f"--samples-npz {file} must end in .npz")
        if file.exists() and not options.again:
            raise ConfigError(f"{file} exists: give another --samples-npz, or replace it with --again")
    if processes.world > 1:
        raise ConfigError("--samples-npz needs a single process: run without the launcher")


def _archived(evaluated: Callable[[Keep], Record], keep: Keep, file: Path, count: int, size: tuple[int, int]) -> Record:
    """Measure, and write the samples to an archive while they are drawn."""
    class_ids: list[torch.Tensor] = []
    with SampleArchive(file, count, size) as archive:

        def write(samples: Samples) -> None:
            keep(samples)
            class_ids.append(samples.class_ids)
            archive.add(samples.images.permute(0, 2, 3, 1).numpy())

        record = evaluated(write)
        archive.finish(arr_1=torch.cat(class_ids).numpy().astype(np.int64))
    return record


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
    keep: Keep | None = None,
    processes: Processes = ALONE,
) -> Record:
    """`count` samples with uniform classes against center crops of training images `reference`.

    The reference is `count` random images, or all if there are fewer, or the file `statistics`. Without both, and
    without features, there are no distances. With `classifier`, whose class ids must be those of the prior, also how
    often it recognises the class. `keep` is called with every batch of samples. Errors are those of `draw_samples`,
    and `EvaluationError` for a count below 1.
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
    """A note if at least `UNEQUAL` of the images would have to change class for equal class frequencies."""
    if num_classes < 2 or not len(reference):
        return []
    counts = np.bincount(reference.labels, minlength=num_classes)
    if np.abs(counts / counts.sum() - 1 / num_classes).sum() / 2 < UNEQUAL:
        return []
    return [
        f"the reference has unequal classes ({counts.min()} to {counts.max()} images) and the samples have equal ones: "
        "no model can remove this part of the distance, so compare on the same images only"
    ]
