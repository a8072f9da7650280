"""`prologue evaluate generation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from tyro.conf import arg

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    SPLIT_WORDS,
    Measurement,
    NoFigure,
    Prepared,
    Row,
    checked,
    facts,
    row,
    training_of,
    with_notes,
)
from prologue.cli.kinds.distances import (
    DistanceOptions,
    distance_rows,
    distance_sentences,
    reference_facts,
    reference_notes,
)
from prologue.cli.kinds.nearness import verdict
from prologue.data.pictures import SampleArchive
from prologue.errors import ConfigError, DataError, EvaluationError
from prologue.evaluation.generation import Samples, evaluate_generation, possible_recipe
from prologue.evaluation.memorisation import BY_DEFAULT, compare_samples
from prologue.evaluation.metrics.coarse import SIDE
from prologue.evaluation.nearest import Described
from prologue.evaluation.recognition import Classifier, fit_judge, shipped_classifier
from prologue.evaluation.reference import Reference
from prologue.evaluation.runs import Record, RunImages, RunInfo
from prologue.pipeline import Pipeline
from prologue.sampling.flags import GUIDANCE_HELP, RecipeFlags, recipe_words
from prologue.utils.files import is_stream
from prologue.utils.options import OUTPUT_FILE
from prologue.utils.processes import Processes
from prologue.utils.progress import progress

_DEFAULT_SAMPLES = 2048
Keep = Callable[[Samples], None]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(RecipeFlags, DistanceOptions):
    count: int = _DEFAULT_SAMPLES
    """Samples, dealt to the classes in turn; from 10000 on the Fréchet distance is more than indicative."""

    judge: bool = False
    """Fit a linear classifier to features of training images, and count how often it sees the asked class; the embedded
    shapes have a classifier of their own, which always does."""

    samples_npz: Annotated[Path | None, arg(metavar="FILE.npz"), OUTPUT_FILE, NoFigure()] = None
    """Also write the samples in ADM's form (`arr_0` images, `arr_1` class ids), for other evaluators."""


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate generation", "Measure samples against training images."
    options = checked(parse(GenerationOptions, argv, prog, description, GUIDANCE_HELP))
    options.check()
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
        notes = (*notes, "the stored guidance leans on a class, and this run has none, so it is left out")
    recipe = stored.replace(**sampling)
    if opened is not None and options.judge and opened.data.num_classes != pipeline.prior.num_classes:
        raise ConfigError(
            f"--judge: the images have {opened.data.num_classes} classes and the run {pipeline.prior.num_classes}, so "
            "that no judge of theirs can know the run's: leave it out, or give images of the run's classes with --data"
        )

    def judge() -> Classifier | None:
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
            classifier=judge(),
            watch=progress,
            statistics=statistics,
            keep=keep,
            processes=processes,
        )

    known = None if opened is None or not opened.own else opened.data
    looked_up = known is not None and len(known.validation) > 0 and len(known.train) < BY_DEFAULT
    looked_up = looked_up and processes.world == 1

    def measure() -> Measurement:
        _check_archive(options, processes)  # again: another process may have written it meanwhile
        file, points = options.samples_npz, list[Described]()

        def keep(samples: Samples) -> None:
            if looked_up:
                points.append(Described.of(samples.images, None))

        record = evaluated(keep) if file is None else _archived(evaluated, keep, file, options.count, size)
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
        return Measurement(with_notes(record, notes))

    origin = facts(info, options, opened, pipeline.device) | features.facts() | reference_facts(statistics)
    origin |= {"recipe": recipe.to_dict(), "memorisation": looked_up}
    archive = options.samples_npz
    return Prepared(options, origin, measure, writes=archive, anew=archive is not None)


def _images(options: GenerationOptions, info: RunInfo, size: tuple[int, int]) -> RunImages | None:
    """The images; None where a reference stands for them and they are not at hand."""
    try:
        return options.open_data(info, size)
    except (DataError, EvaluationError):
        if options.reference is None or options.judge or options.data is not None:
            raise
        return None


def _notes(opened: RunImages | None, statistics: Reference | None) -> tuple[str, ...]:
    if opened is not None:
        return (*opened.notes, *reference_notes(statistics, opened.data.fingerprint))
    missing = "the training images are not at hand, so how near the samples are to them was not looked up"
    return (missing, *reference_notes(statistics, None))


def _check_archive(options: GenerationOptions, processes: Processes) -> None:
    """Refuse an archive that cannot be written before anything is measured."""
    file = options.samples_npz
    if file is None:
        return
    if not is_stream(file):
        if file.suffix != ".npz":
            raise ConfigError(f"--samples-npz {file} must end in .npz")
        if file.exists() and not options.again:
            raise ConfigError(f"{file} is there already: give another --samples-npz, or --again to replace it")
    if processes.world > 1:
        raise ConfigError("--samples-npz is written by one process: run it without the launcher")


def _archived(evaluated: Callable[[Keep], Record], keep: Keep, file: Path, count: int, size: tuple[int, int]) -> Record:
    """The figures, with the samples that they are of written as they are drawn."""
    class_ids: list[torch.Tensor] = []
    with SampleArchive(file, count, size) as archive:

        def write(samples: Samples) -> None:
            keep(samples)
            class_ids.append(samples.class_ids)
            archive.add(samples.images.permute(0, 2, 3, 1).numpy())

        record = evaluated(write)
        archive.finish(arr_1=torch.cat(class_ids).numpy().astype(np.int64))
    return record


def rows(record: Record) -> Iterator[Row]:
    yield from distance_rows(record)
    recognition = record["recognition"]
    if recognition is not None:
        yield row("classifier recognises the asked class", recognition, "rate", ".1%")
        if "judge_rate" in recognition:
            yield row("  the same of held-out images", recognition, "judge_rate", ".1%")
        for part in recognition["by_class"]:
            yield row(f"  {part['class']}", part, "rate", ".1%")
    near = record.get("memorisation")
    if near is not None:
        yield row("nearer to training than held-out images", near, "coarse_nearer", ".1%")
        yield row("very near to training images", near, "coarse_share", ".1%")
        yield "  expected if alike", f"{near['coarse_share_expected']:.1%}", ""


def sentences(record: Record) -> Iterator[str]:
    which = SPLIT_WORDS[record["reference_split"]]
    against = f" against {record['n_reference']} {which} images (center crops)" if record["n_reference"] else ""
    if record.get("reference") is not None:
        number = "" if record["n_reference"] is None else f" of {record['n_reference']} training images"
        against = f" against {record['reference']}{number}"
    yield f"N = {record['n']} samples, labels uniform over the classes{against}."
    yield f"Recipe: {recipe_words(record['recipe'])}."
    yield from distance_sentences(record)
    recognition = record["recognition"]
    if recognition is not None and "judge_n_train" in recognition:
        fitted = f"fitted to {recognition['judge_n_train']} training images"
        yield f"The classifier is {recognition['judge']}, {fitted}; chance is {1 / record['classes']:.1%}."
    if record.get("memorisation") is not None:
        yield from verdict(record["memorisation"], "coarse", f"Memorisation, {SIDE}×{SIDE} pixels")
