"""`prologue evaluate likelihood`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from prologue import builtin
from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    HeldOutOptions,
    Measurement,
    Prepared,
    Row,
    StatedBy,
    Told,
    checked,
    facts,
    images_sentence,
    row,
    training_of,
    with_notes,
)
from prologue.errors import EvaluationError
from prologue.evaluation.likelihood import encode_images, evaluate_likelihood, true_classes
from prologue.evaluation.runs import LIKELIHOOD_IMAGES, Record, RunInfo, choose_images
from prologue.models.prior import Prior
from prologue.models.weights import WEIGHTS, file_hash
from prologue.pipeline import Pipeline
from prologue.report.figures_likelihood import bits_chart, bits_maps
from prologue.utils.progress import progress


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(HeldOutOptions):
    baseline: Annotated[Path | None, arg(metavar="RUN"), StatedBy("baseline_weights", "baseline_configs")] = None
    """A prior without prologue on the same tokenizer's visual ids, for the gain:
    `prologue train --tokenizer RUN --prior.prologue false`."""


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate likelihood", "Measure what a prior pays for the tokens of held-out images."
    options = checked(parse(LikelihoodOptions, argv, prog, description))
    if options.baseline is not None:
        options = dataclasses.replace(options, baseline=builtin.locate(options.baseline))
    info = RunInfo.load(options.run, options.checkpoint)
    pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
    baseline = None if options.baseline is None else _baseline(options, pipeline)
    opened = options.open_data(info, pipeline.tokenizer.config.image_size)
    split = opened.measured()
    indices = choose_images(len(split.images), options.count, options.seed, "likelihood")
    labels = split.images.labels[indices]
    class_ids, said = true_classes(labels, opened.data.class_names, pipeline.class_names, pipeline.prior.num_classes)

    def measure() -> Measurement:
        tokens = encode_images(pipeline.tokenizer, split.images, indices, batch=options.batch, watch=progress)
        record = evaluate_likelihood(
            pipeline.prior,
            tokens,
            class_ids,
            image_size=pipeline.tokenizer.config.image_size,
            split=split.name,
            baseline=baseline,
            seed=options.seed,
            batch=options.batch,
            starts_from_data=bool(training_of(info).tokenizer_training.prologue_kmeans),
            watch=progress,
        )
        pictures = {"bits": bits_chart(record)}
        if pipeline.tokenizer.config.visual_tokens_on_grid:
            pictures["grid"] = bits_maps(record, pipeline.tokenizer.config.grid)
        return Measurement(with_notes(record, (*split.notes, *opened.notes, *said)), pictures)

    origin = facts(info, options, opened, pipeline.device)
    if options.baseline is not None:
        other = RunInfo.load(options.baseline).facts()
        origin |= {"baseline": Told(options.baseline)}
        origin |= {f"baseline_{name}": other[name] for name in ("weights", "configs")}
    return Prepared(options, origin, measure)


def _baseline(options: LikelihoodOptions, pipeline: Pipeline) -> Prior:
    """The baseline's prior, whose visual ids must be those of the run: it has the same tokenizer."""
    assert options.baseline is not None
    other = Pipeline.from_pretrained(options.baseline, pipeline.device, pipeline.dtype)
    hashes = {file_hash(folder / "tokenizer" / WEIGHTS) for folder in (options.run, options.baseline)}
    if len(hashes) > 1:
        raise EvaluationError(
            f"{options.baseline} has another tokenizer than {options.run}, and likelihoods compare only on the same "
            f"visual ids: train the baseline with --tokenizer {options.run} --prior.prologue false"
        )
    if other.class_names != pipeline.class_names:
        raise EvaluationError(f"{options.baseline} has other classes than {options.run}: train both on the same images")
    return other.prior


def rows(record: Record) -> Iterator[Row]:
    yield row("nats per image", record, "nats", ".2f")
    yield row("bits per image", record, "bits", ".2f")
    yield row("token bits per dimension", record, "token_bits_per_dimension", ".5f")
    for name, label in (("prologue", "prologue"), ("eos", "EOS"), ("visual", "visual")):
        yield row(f"  {label}, nats", record, f"{name}_nats", ".2f")
        yield row(f"  {label}, bits", record, f"{name}_bits", ".2f")
    yield "entropy of the visual ids, nats per image", f"{record['visual_entropy']:.2f}", ""
    yield "entropy of the visual ids, nats per token", f"{record['visual_entropy_per_token']:.3f}", ""
    if record["cost"] is None:
        return
    yield row("prologue: cost, nats", record, "cost", ".2f")
    yield "prologue: diversity, nats", f"{record['diversity']:.2f}", ""
    if record["use"] is not None:
        yield row("prologue: use, nats", record, "use", ".2f")
    if record["gain"] is not None:
        yield row("prologue: gain, nats", record, "gain", ".2f")
        yield row("baseline: visual, nats", record, "baseline_visual_nats", ".2f")


def sentences(record: Record) -> Iterator[str]:
    yield images_sentence(record)
    if record["gain"] is not None:
        yield from _bounds(record)
    if record["indicative"]:
        yield f"Indicative: fewer than {LIKELIHOOD_IMAGES} images."


def _bounds(record: Record) -> Iterator[str]:
    """Both bounds on the same visual ids, and whether they differ."""
    yield (
        f"Bounds on −log p of the visual ids: {record['nats']:.2f} nats per image with the prologue (prologue, EOS and "
        f"visual together), {record['baseline_visual_nats']:.2f} without."
    )
    if record["gain_low"] is None or record["gain_low"] <= 0 <= record["gain_high"]:
        yield "The two cannot be told apart at this N."
    else:
        yield f"The prior {'with' if record['gain'] > 0 else 'without'} a prologue predicts them better."
