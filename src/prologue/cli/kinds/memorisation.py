"""`prologue evaluate memorisation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    FeaturesOption,
    Measurement,
    Options,
    Prepared,
    Row,
    checked,
    facts,
    row,
    training_of,
    with_notes,
)
from prologue.cli.kinds.nearness import verdict
from prologue.data.pictures import labelled_grid, to_pil
from prologue.errors import EvaluationError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.generation import possible_recipe
from prologue.evaluation.memorisation import Closest, Pair, evaluate_memorisation
from prologue.evaluation.metrics.coarse import SIDE
from prologue.evaluation.runs import Record, RunInfo
from prologue.pipeline import Pipeline
from prologue.report.figures_maps import Step, cumulative_chart
from prologue.sampling.flags import recipe_words
from prologue.utils.progress import progress

_DEFAULT_SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class MemorisationOptions(Options):
    count: int = _DEFAULT_SAMPLES
    """Samples, dealt to the classes in turn, and at most so many held-out images."""
    features: FeaturesOption = "auto"


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate memorisation", "Measure whether samples are copies of training images."
    options = checked(parse(MemorisationOptions, argv, prog, description))
    info = RunInfo.load(options.run, options.checkpoint)
    pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
    features = Features.open(
        options.features, info.data_name(options.data), pipeline.device, pipeline.manifest.trained_on
    )
    opened = options.open_data(info, pipeline.tokenizer.config.image_size)
    if not len(opened.data.validation):
        raise EvaluationError(
            f"{opened.source} has no held-out images, and nothing else says how near to the training images a "
            "new image lies: train with --data.validation-fraction above 0"
        )
    recipe = possible_recipe(pipeline.recipe, pipeline.prior)

    def measure() -> Measurement:
        record, closest = evaluate_memorisation(
            pipeline.tokenizer,
            pipeline.prior,
            recipe,
            opened.data,
            features,
            count=options.count,
            mirror=training_of(info).data.flip,
            seed=options.seed,
            batch=options.batch,
            watch=progress,
        )
        record = with_notes(record, opened.notes)
        return Measurement(record, _pictures(record, closest))

    origin = facts(info, options, opened, pipeline.device)
    return Prepared(options, origin | features.facts() | {"recipe": recipe.to_dict()}, measure)


def _measures(record: Record) -> Iterator[tuple[str, str]]:
    """Names of the distances in the record, and what to call them."""
    yield "coarse", f"{SIDE}×{SIDE} pixels"
    if record["features"] is not None:
        yield "features", f"{record['features']} features"


def _pictures(record: Record, closest: Closest) -> Mapping[str, Image.Image]:
    panels = [
        (
            f"distance to the nearest training image, {label} (RMS{', 0…255' if name == 'coarse' else ''})",
            [
                Step("samples", record[f"{name}_quantiles"]),
                Step("held-out images, decoded", record[f"{name}_validation_quantiles"]),
                Step("copies: training images, decoded", record[f"{name}_copies_quantiles"]),
                Step("held-out images as they are", record[f"{name}_undecoded_quantiles"]),
            ],
            record[f"{name}_threshold"],
        )
        for name, label in _measures(record)
    ]
    pairs = list(zip(closest.samples, closest.validation, strict=False))
    tiles = [[*_tiles(sample), *_tiles(held)] for sample, held in pairs]
    labels = [f"RMS {sample.distance:.1f}, {held.distance:.1f}" for sample, held in pairs]
    return {
        "distances": cumulative_chart("How near to the training images", panels, "images, %"),
        "closest": labelled_grid(tiles, ["sample", "nearest", "held out", "nearest"], labels),
    }


def _tiles(pair: Pair) -> list[Image.Image]:
    return to_pil(torch.stack([pair.image, pair.training]))


def rows(record: Record) -> Iterator[Row]:
    for name, label in _measures(record):
        yield f"{label}: median to the nearest, samples", f"{record[f'{name}_median']:.4g}", ""
        for side, what in (("validation", "held-out"), ("undecoded", "held-out, not decoded"), ("copies", "copies")):
            yield f"  {what}", f"{record[f'{name}_{side}_median']:.4g}", ""
        yield row(f"{label}: nearer than held-out", record, f"{name}_nearer", ".1%")
        yield row(f"{label}: near", record, f"{name}_share", ".1%")
        yield "  near, expected if alike", f"{record[f'{name}_share_expected']:.1%}", ""
        yield row("  near, of copies", record, f"{name}_copies_share", ".1%")
    if record["validation_kid"] is not None:
        for side, label in (("validation", "held-out"), ("training", "training")):
            yield row(f"{record['kid_name']} to {label} images", record, f"{side}_kid", ".4g")
        for side, label in (("validation", "held-out"), ("training", "training")):
            mark = ", indicative" if record["indicative"] else ""
            yield f"{record['fd_name']} to {label} images{mark}", f"{record[f'{side}_fd']:.4g}", ""


def sentences(record: Record) -> Iterator[str]:
    views = "center crops and their mirror images" if record["mirrored"] else "center crops"
    yield (
        f"N = {record['n']} samples, labels uniform over the classes, and {record['n_validation']} held-out images; "
        f"the nearest of all {record['n_training']} training images ({views}). Distances are RMS differences, of "
        "pixels on 0…255."
    )
    yield (
        "Held-out images are encoded and decoded, as samples come out of the decoder. Copies are training images, "
        "encoded and decoded: what a run that only copies would show. Near is nearer than all but 1 % of the "
        "held-out images."
    )
    yield f"Recipe: {recipe_words(record['recipe'])}."
    for name, label in _measures(record):
        yield from verdict(record, name, label)
    if record["features"] is None:
        yield f"No distance in features: {record['reason']}."
    if record["validation_kid"] is not None:
        yield _sets(record)
    if record["trained_on_features"]:
        yield f"The tokenizer trained on these features ({record['features']})."


def _sets(record: Record) -> str:
    """Distances to held-out beside those to training images."""
    name, count = record["kid_name"], record["n_distance"]
    if record["training_kid_high"] < record["validation_kid_low"]:
        return f"{name}: the samples are closer to the training images than to as many ({count}) held-out ones."
    return f"{name}: no closer to the training images than to as many ({count}) held-out ones beyond the intervals."
