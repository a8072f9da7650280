"""`prologue evaluate layout`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    images_sentence,
    row,
    with_notes,
)
from prologue.data.pictures import labelled_grid, to_pil
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.generation import possible_recipe
from prologue.evaluation.layout import Shown, evaluate_layout
from prologue.evaluation.likelihood import true_classes
from prologue.evaluation.recognition import shipped_classifier
from prologue.evaluation.runs import Record, RunInfo, choose_images
from prologue.pipeline import Pipeline
from prologue.report.figures_maps import Ratio, ratio_chart
from prologue.sampling.flags import recipe_words
from prologue.utils.progress import progress

_SHOWN_SAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(Options):
    count: int = 64
    """So many of the held-out images, at random: their prologues are drawn from."""
    per: int = 4
    """Images drawn from each prologue."""
    features: FeaturesOption = "auto"


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate layout", "Measure how alike images are that are drawn from one prologue."
    options = checked(parse(LayoutOptions, argv, prog, description))
    if options.per < 2:
        raise ConfigError(f"--per must be at least 2, not {options.per}: distances are between images of a prologue")
    info = RunInfo.load(options.run, options.checkpoint)
    pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
    if not pipeline.prior.layout.has_prologue:
        raise EvaluationError(f"{options.run} has no prologue to keep: give a run whose prior has prologue tokens")
    features = Features.open(
        options.features, info.data_name(options.data), pipeline.device, pipeline.manifest.trained_on
    )
    opened = options.open_data(info, pipeline.tokenizer.config.image_size)
    split = opened.measured()
    indices = choose_images(len(split.images), options.count, options.seed, "layout")
    class_ids, said = true_classes(
        split.images.labels[indices], opened.data.class_names, pipeline.class_names, pipeline.prior.num_classes
    )
    recipe = possible_recipe(pipeline.recipe, pipeline.prior)

    def measure() -> Measurement:
        record, shown = evaluate_layout(
            pipeline.tokenizer,
            pipeline.prior,
            recipe,
            split.images,
            indices,
            class_ids,
            features,
            per=options.per,
            split=split.name,
            classifier=shipped_classifier(opened.source, pipeline.class_names, pipeline.device),
            seed=options.seed,
            batch=options.batch,
            watch=progress,
        )
        record = with_notes(record, (*split.notes, *opened.notes, *said))
        return Measurement(record, {"resamples": _grid(shown, pipeline), "ratio": _chart(record)})

    origin = facts(info, options, opened, pipeline.device)
    return Prepared(options, origin | features.facts() | {"recipe": recipe.to_dict()}, measure)


def _grid(shown: Shown, pipeline: Pipeline) -> Image.Image:
    """A row for each prologue: the image that it is of, its reconstruction, and images drawn from it."""
    count = min(_SHOWN_SAMPLES, shown.samples.shape[1])
    sources, decoded = to_pil(shown.images), to_pil(shown.reconstructions)
    rows = [
        [sources[row], decoded[row], *to_pil(samples[:count])] for row, samples in enumerate(shown.samples.unbind())
    ]
    columns = ["image", "decoded", *(f"drawn {number + 1}" for number in range(count))]
    return labelled_grid(rows, columns, [pipeline.class_name(int(class_id)) for class_id in shown.class_ids])


def _chart(record: Record) -> Image.Image:
    ratios = [
        Ratio(
            label,
            record[f"{name}_ratio"],
            record[f"{name}_ratio_low"],
            record[f"{name}_ratio_high"],
            (record[f"{name}_shuffled_low"], record[f"{name}_shuffled_high"]),
        )
        for name, label in _measures(record)
        if record[f"{name}_ratio"] is not None
    ]
    title = "Distance within a prologue / between prologues"
    return ratio_chart(title, "ratio (1: the prologue fixes nothing)", ratios, "prologues shuffled")


def _measures(record: Record) -> Iterator[tuple[str, str]]:
    """Names of the distances in the record, and what to call them."""
    side = record["coarse_side"]
    yield "coarse", f"{side}×{side} pixels"
    if record["features"] is not None:
        yield "features", f"{record['features']} features"
    if record["verdict_within"] is not None:
        yield "verdict", "seen class"


def rows(record: Record) -> Iterator[Row]:
    for name, label in _measures(record):
        style, unit = (".1%", "differs") if name == "verdict" else (".4g", "RMS 0…255" if name == "coarse" else "RMS")
        yield row(f"{label}: within a prologue, {unit}", record, f"{name}_within", style)
        yield row(f"{label}: between prologues, {unit}", record, f"{name}_between", style)
        if record[f"{name}_ratio"] is not None:
            yield row(f"{label}: ratio", record, f"{name}_ratio", ".3f")
            yield row(f"{label}: ratio with prologues shuffled", record, f"{name}_shuffled", ".3f")


def sentences(record: Record) -> Iterator[str]:
    yield images_sentence(record)
    yield (
        f"{record['per']} images are drawn from the prologue of each, with its own class; distances between prologues "
        "are of images of the same class. Intervals are over prologues."
    )
    yield f"Recipe: {recipe_words(record['recipe'])}."
    for name, label in _measures(record):
        yield f"{label}: {_verdict(record, name)}."
    if record["verdict_within"] is not None:
        yield "The seen class is the shipped classifier's verdict; other factors of shapes are not read from samples."
    if record["features"] is None:
        yield f"No distance in features: {record['reason']}."
    if record["trained_on_features"]:
        yield f"The tokenizer trained on these features ({record['features']})."


def _verdict(record: Record, name: str) -> str:
    """What a ratio says, as far as its interval and that of chance allow."""
    ratio, low, high = (record[f"{name}_ratio{end}"] for end in ("", "_low", "_high"))
    if ratio is None:
        return "nothing differs between prologues of a class, so there is no ratio"
    if high < 1 and ratio < record[f"{name}_shuffled_low"]:
        often = "often seen differently" if name == "verdict" else "far apart"
        return (
            f"two images from one prologue are {ratio:.2f} times as {often} as "
            f"two from different ones ({low:.2f} … {high:.2f}), so the prologue fixes some of it"
        )
    if low > 1 and ratio > record[f"{name}_shuffled_high"]:
        return f"images from one prologue differ more than those of different ones ({ratio:.2f} times)"
    return f"the ratio {ratio:.2f} ({low:.2f} … {high:.2f}) is not distinguishable from shuffled prologues at this N"
