"""`prologue evaluate intervention`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    SPLIT_WORDS,
    Measurement,
    Options,
    Prepared,
    Row,
    checked,
    facts,
    row,
    with_notes,
)
from prologue.data.pictures import thumbnails, to_pil
from prologue.errors import ConfigError, EvaluationError
from prologue.evaluation.generation import possible_recipe
from prologue.evaluation.intervention import Intervened, Pairs, evaluate_intervention, intervene, mean_maps
from prologue.evaluation.likelihood import encode_images, true_classes
from prologue.evaluation.recognition import shipped_classifier
from prologue.evaluation.runs import Record, RunInfo
from prologue.pipeline import Pipeline
from prologue.report.figures_intervention import change_map, effect_chart, example_sheet
from prologue.sampling.flags import GUIDANCE_HELP, RecipeFlags, recipe_words
from prologue.sampling.guidance import Guidance
from prologue.utils.progress import progress
from prologue.utils.rng import numpy_stream

_EXAMPLES, _STRONGEST = 4, 5
"""Pairs that are shown, and positions of each."""


@dataclass(frozen=True, kw_only=True)
class InterventionOptions(RecipeFlags, Options):
    pairs: int = 32
    """Pairs of images, all different, between which a prologue token is exchanged."""


def prepare(argv: Sequence[str]) -> Prepared:
    prog = "prologue evaluate intervention"
    description = "Exchange single prologue tokens between images, and measure what the sampled images change."
    options = checked(parse(InterventionOptions, argv, prog, description, GUIDANCE_HELP))
    if options.pairs < 1:
        raise ConfigError(f"--pairs must be at least 1, not {options.pairs}")
    options.check()
    sampling = options.sampling()
    info = RunInfo.load(options.run, options.checkpoint)
    pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
    if not pipeline.prior.layout.has_prologue:
        raise EvaluationError(f"the prior of {options.run} has no prologue to intervene on: measure a run that has one")
    opened = options.open_data(info, pipeline.tokenizer.config.image_size)
    split = opened.measured()
    first, second = choose_pairs(len(split.images), options.pairs, options.seed)
    own = split.images.labels[first]
    class_ids, said = true_classes(own, opened.data.class_names, pipeline.class_names, pipeline.prior.num_classes)
    stored = possible_recipe(pipeline.recipe, pipeline.prior)
    if bool((class_ids == pipeline.prior.null_class).any()) and "guidance" not in sampling:
        stored = stored.replace(guidance=Guidance.none())
    if stored != pipeline.recipe and "guidance" not in sampling:
        said = (*said, "the stored guidance leans on a class, and there is none here, so it is left out")
    recipe = stored.replace(**sampling)

    def measure() -> Measurement:
        shared: dict[str, Any] = {"batch": options.batch, "watch": progress}
        tokens = encode_images(pipeline.tokenizer, split.images, np.concatenate([first, second]), **shared)
        pairs = Pairs(tokens.prologue[: len(first)], tokens.prologue[len(first) :], class_ids)
        images = intervene(pipeline.tokenizer, pipeline.prior, recipe, pairs, seed=options.seed, **shared)
        classifier = shipped_classifier(opened.source, pipeline.class_names, pipeline.device)
        record = evaluate_intervention(
            images, pairs, recipe, split=split.name, seed=options.seed, classifier=classifier
        )
        maps = {name: part.numpy() for name, part in mean_maps(images).items()}
        pictures = {"effect": effect_chart(record), "map": change_map(**maps), "examples": _examples(images, record)}
        return Measurement(with_notes(record, (*split.notes, *opened.notes, *said)), pictures)

    origin = facts(info, options, opened, pipeline.device)
    return Prepared(options, origin | {"recipe": recipe.to_dict()}, measure)


def choose_pairs(total: int, pairs: int, seed: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Images and their partners, at random, no image twice. More than there are is an `EvaluationError`."""
    if 2 * pairs > total:
        way = "give a smaller --pairs" if total > 1 else "a pair needs two, so give more with --data"
        raise EvaluationError(f"{pairs} pairs are {2 * pairs} images, and there are {total}: {way}")
    chosen = numpy_stream(seed, "evaluation", "intervention").permutation(total)[: 2 * pairs]
    return chosen[:pairs], chosen[pairs:]


def _examples(images: Intervened, record: Record) -> Image.Image:
    """The first pairs, with the strongest positions in their order."""
    effects = [part["effect"] for part in record["positions"]]
    shown = sorted(sorted(range(len(effects)), key=lambda position: -effects[position])[:_STRONGEST])
    columns = [images.before, *(images.after[position] for position in shown), images.whole, images.resampled]
    labels = ["before", *(f"position {position}" for position in shown), "whole", "other noise"]
    pictures = [thumbnails(to_pil(column[:_EXAMPLES])) for column in columns]
    return example_sheet([list(row) for row in zip(*pictures, strict=True)], labels)


def rows(record: Record) -> Iterator[Row]:
    seen = "whole_verdict" in record
    for name, label in (("resampled", "other noise, same prologue"), ("whole", "whole prologue exchanged")):
        yield row(f"{label}: change of a pixel", record, name, ".2f")
        if seen:
            yield row("  classifier's verdict changes", record, f"{name}_verdict", ".1%")
    for part in record["positions"]:
        label = f"position {part['position']}: change of a pixel ({part['differ']} of {record['n']} pairs differ)"
        yield row(label, part, "effect", ".2f")
        if seen:
            yield row("  classifier's verdict changes", part, "verdict", ".1%")


def sentences(record: Record) -> Iterator[str]:
    yield (
        f"N = {record['n']} pairs of {SPLIT_WORDS[record['split']]} images; mean absolute change of a pixel, 0 to 255. "
        "The visual tokens are sampled with the same noise before and after."
    )
    yield f"Recipe: {recipe_words(record['recipe'])}."
    yield _against_noise(record)
    parts = record["positions"]
    still = [str(part["position"]) for part in parts if part["effect"] == 0]
    if still:
        yield f"Exchanging position {', '.join(still)} changes nothing in these pairs."
    if len(still) < len(parts):
        yield _largest(parts, record["largest"])


def _against_noise(record: Record) -> str:
    """The whole exchange beside other noise, as far as the interval of their difference tells them apart."""
    low, high = record["whole_beyond_resampled_low"], record["whole_beyond_resampled_high"]
    if low is None or low <= 0 <= high:
        return (
            "Exchanging the whole prologue and drawing other noise are not distinguishable at this N in how much they "
            "change the image."
        )
    more = "more" if low > 0 else "less"
    return (
        f"Exchanging the whole prologue changes the image {more} than other noise does: "
        f"{record['whole']:.1f} against {record['resampled']:.1f}."
    )


def _largest(parts: Sequence[Record], largest: int) -> str:
    best = parts[largest]
    rivals = [
        str(part["position"])
        for part in parts
        if part is not best and (best["effect_low"] is None or part["effect_high"] >= best["effect_low"])
    ]
    text = f"Position {largest} has the largest effect, {best['effect']:.1f}"
    if not rivals:
        return text + ", above the intervals of all others."
    return text + f"; not distinguishable from position {', '.join(rivals)} at this N."
