"""`prologue evaluate intervention`: what images change if one prologue token is exchanged between two images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image
from torch import Tensor

from prologue.data.pictures import labelled_grid, thumbnails, titled, to_pil
from prologue.errors import EvaluationError
from prologue.evaluation.codes import encode_images
from prologue.evaluation.kinds.base import (
    SPLIT_WORDS,
    Kind,
    Measurement,
    Options,
    Prepared,
    Row,
    SampledSubject,
    row,
)
from prologue.evaluation.metrics.intervals import Interval, mean_interval, wilson_interval
from prologue.evaluation.recognition import Classifier, shipped_classifier
from prologue.evaluation.runs import ProgressCallback, Record, unwatched
from prologue.evaluation.samples import draw_samples, possible_recipe
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer
from prologue.report.figures import COLOURS, INK, add_legend, error_bars, grid_maps, panels, picture_of, style_axes
from prologue.sampling.flags import GUIDANCE_HELP, RecipeFlags, recipe_words
from prologue.sampling.recipe import Recipe
from prologue.utils.progress import progress
from prologue.utils.rng import check_seeds, numpy_stream

_EXAMPLES, _STRONGEST = 4, 5
"""Pairs in the picture of examples, and positions of each."""
_FAR = 1 << 32
"""Distance from the seed of an image to the seed of its other noise; larger than any number of images."""


@dataclass(frozen=True, kw_only=True)
class InterventionOptions(RecipeFlags, Options):
    pairs: int = 32
    """Number of pairs of images that exchange prologue tokens; all images are different."""

    def check(self) -> None:
        Options.check(self)
        RecipeFlags.check(self)


class Intervention(Kind[InterventionOptions]):
    """Exchanges single prologue tokens between images, and measures the change of the sampled images."""

    summary = "what an image changes when one prologue token is exchanged"
    options = InterventionOptions
    epilog = GUIDANCE_HELP

    def prepare(self, options: InterventionOptions) -> Prepared:
        sampling = options.sampling()
        subject = SampledSubject.open(options, prologue=True)
        tokenizer, prior, pipeline = subject.tokenizer, subject.prior, subject.pipeline
        images = subject.split.images
        first, second = choose_pairs(len(images), options.pairs, options.seed)
        class_ids, notes = subject.classes(first)
        stored = pipeline.recipe
        if "guidance" not in sampling:
            stored = possible_recipe(stored, prior, class_ids)
            if stored != pipeline.recipe:
                notes = (*notes, "the stored guidance needs a class, and these images have none, so it is not used")
        recipe = possible_recipe(stored, prior).replace(**sampling)

        def measure() -> Measurement:
            shared: dict[str, Any] = {"batch": options.batch, "watch": progress}
            tokens = encode_images(tokenizer, images, np.concatenate([first, second]), **shared)
            pairs = Pairs(tokens.prologue[: len(first)], tokens.prologue[len(first) :], class_ids)
            intervened = intervene(tokenizer, prior, recipe, pairs, seed=options.seed, **shared)
            record = evaluate_intervention(
                intervened,
                pairs,
                recipe,
                split=subject.split.name,
                seed=options.seed,
                classifier=shipped_classifier(subject.images.source, pipeline.class_names, subject.device),
            )
            pictures = {
                "effect": effect_chart(record),
                "map": change_map(**{name: part.numpy() for name, part in mean_maps(intervened).items()}),
                "examples": _examples(intervened, record),
            }
            return Measurement(subject.noted(record, *notes), pictures)

        return Prepared(options, subject.facts() | {"recipe": recipe.to_dict()}, measure)

    def rows(self, record: Record) -> Iterator[Row]:
        seen = "whole_verdict" in record
        for name, label in (("resampled", "other noise, same prologue"), ("whole", "whole prologue exchanged")):
            yield row(f"{label}: pixel change", record, name, ".2f")
            if seen:
                yield row("  change of the predicted class", record, f"{name}_verdict", ".1%")
        for part in record["positions"]:
            label = f"position {part['position']}: pixel change ({part['differ']} of {record['n']} pairs differ)"
            yield row(label, part, "effect", ".2f")
            if seen:
                yield row("  change of the predicted class", part, "verdict", ".1%")

    def sentences(self, record: Record) -> Iterator[str]:
        yield (
            f"N = {record['n']} pairs of {SPLIT_WORDS[record['split']]} images. Pixel change is the mean absolute "
            "change of a pixel, 0 to 255. Visual tokens are sampled with the same noise before and after the exchange."
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
    """Compares the exchange of the whole prologue with other noise."""
    low, high = record["whole_beyond_resampled_low"], record["whole_beyond_resampled_high"]
    if low is None or low <= 0 <= high:
        return "The changes by exchanging the whole prologue and by other noise are not distinguishable at this N."
    return (
        f"Exchanging the whole prologue changes the image {'more' if low > 0 else 'less'} than other noise does: "
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


def choose_pairs(total: int, pairs: int, seed: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Random images and their partners, all different. Too few images are an `EvaluationError`."""
    if 2 * pairs > total:
        way = "give a smaller --pairs" if total > 1 else "give more images with --data"
        raise EvaluationError(f"{pairs} pairs need {2 * pairs} images, and there are {total}: {way}")
    chosen = numpy_stream(seed, "evaluation", "intervention").permutation(total)[: 2 * pairs]
    return chosen[:pairs], chosen[pairs:]


class Pairs(NamedTuple):
    """Prologues of `k` images and of their partners, and the classes of the images, on the CPU."""

    prologue: Int64[Tensor, "k P"]
    partner: Int64[Tensor, "k P"]
    class_ids: Int64[Tensor, " k"]


class Intervened(NamedTuple):
    """Sampled images: `after[p]` with position `p` exchanged, `whole` with the whole prologue exchanged, all with the
    noise of `before`; `resampled` with the prologue of `before` and other noise."""

    before: UInt8[Tensor, "k 3 H W"]
    after: UInt8[Tensor, "P k 3 H W"]
    whole: UInt8[Tensor, "k 3 H W"]
    resampled: UInt8[Tensor, "k 3 H W"]


def exchanged(pairs: Pairs, position: int) -> Int64[Tensor, "k P"]:
    """The prologues with the partner's code at one position."""
    out = pairs.prologue.clone()
    out[:, position] = pairs.partner[:, position]
    return out


def intervene(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    pairs: Pairs,
    *,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> Intervened:
    """Sample the visual tokens of every exchange; pair `i` has seed `seed + i`.

    A pair with the same code at a position keeps its image from before.

    Raises:
        EvaluationError: the prior has no prologue.
        SamplingError: see `draw_samples`.
    """
    if not prior.layout.has_prologue:
        raise EvaluationError("the prior has no prologue to intervene on: measure a run whose prior has one")
    count, positions = pairs.prologue.shape
    check_seeds(seed, _FAR + count)
    first = torch.arange(seed, seed + count)

    def sample(prologue: Tensor, class_ids: Tensor, seeds: Tensor, what: str) -> Tensor:
        drawn = draw_samples(
            tokenizer, prior, recipe, class_ids, prologue=prologue, seeds=seeds, batch=batch, watch=watch, what=what
        )
        return torch.cat([samples.images for samples in drawn])

    before = sample(pairs.prologue, pairs.class_ids, first, "before")
    whole = sample(pairs.partner, pairs.class_ids, first, "whole prologue")
    resampled = sample(pairs.prologue, pairs.class_ids, first + _FAR, "other noise")
    after = before.expand(positions, *before.shape).clone()
    rows, places = (pairs.prologue != pairs.partner).nonzero(as_tuple=True)
    if len(rows):
        prologues = torch.stack([exchanged(pairs, position) for position in range(positions)])
        after[places, rows] = sample(prologues[places, rows], pairs.class_ids[rows], first[rows], "exchanges")
    return Intervened(before, after, whole, resampled)


def change_maps(before: UInt8[Tensor, "k 3 H W"], after: UInt8[Tensor, "k 3 H W"]) -> Float64[Tensor, "k H W"]:
    """Absolute change of each pixel, 0…255, averaged over colours."""
    return (before.double() - after.double()).abs().mean(1)


def mean_maps(images: Intervened) -> dict[str, Float64[Tensor, "... H W"]]:
    """`change_maps` averaged over pairs: `positions` (P, H, W), `whole` and `resampled` (H, W)."""
    positions = torch.stack([change_maps(images.before, after).mean(0) for after in images.after])
    controls = {name: change_maps(images.before, getattr(images, name)).mean(0) for name in ("whole", "resampled")}
    return {"positions": positions} | controls


def evaluate_intervention(
    images: Intervened,
    pairs: Pairs,
    recipe: Recipe,
    *,
    split: str = "validation",
    seed: int = 0,
    classifier: Classifier | None = None,
) -> Record:
    """Mean absolute change of a pixel (0…255), with 95 % intervals over pairs.

    `positions` has for each prologue position its `effect` over all pairs, the number of pairs whose codes `differ`
    there, and `effect_differing` over those. `whole` is the exchange of the whole prologue; `resampled`, other noise
    with the same prologue, is the change by sampling alone; `whole_beyond_resampled` is their paired difference.
    `largest` is the position of the largest effect. With `classifier`, also how often its prediction changes.
    """
    differs = pairs.prologue != pairs.partner
    seen = None if classifier is None else classifier.classify(images.before)

    def verdict(after: UInt8[Tensor, "k 3 H W"], name: str) -> Record:
        if classifier is None or seen is None:
            return {}
        return wilson_interval(int((classifier.classify(after) != seen).sum()), len(differs)).fields(name)

    record: Record = {"kind": "intervention", "n": len(differs), "split": split, "views": "center"}
    changes = {}
    for name, after in (("whole", images.whole), ("resampled", images.resampled)):
        changes[name] = change_maps(images.before, after).mean((1, 2))
        record |= _mean_change(changes[name]).fields(name) | verdict(after, f"{name}_verdict")
    record |= mean_interval(changes["whole"] - changes["resampled"]).fields("whole_beyond_resampled")
    record["positions"] = [
        {"position": position, **_effect(images.before, after, differs[:, position]), **verdict(after, "verdict")}
        for position, after in enumerate(images.after)
    ]
    effects = [part["effect"] for part in record["positions"]]
    record["largest"] = max(range(len(effects)), key=effects.__getitem__)
    return record | {"recipe": recipe.to_dict(), "guided": recipe.guidance.active, "seed": seed, "notes": []}


def _mean_change(change: Float64[Tensor, " k"]) -> Interval:
    """The mean with its interval, cut at 0."""
    value, low, high = mean_interval(change)
    return Interval(value, None if low is None else max(0.0, low), high)


def _effect(before: UInt8[Tensor, "k 3 H W"], after: UInt8[Tensor, "k 3 H W"], differs: Bool[Tensor, " k"]) -> Record:
    change = change_maps(before, after).mean((1, 2))
    record = _mean_change(change).fields("effect") | {"differ": int(differs.sum())}
    some = bool(differs.any())
    return record | (_mean_change(change[differs]) if some else Interval(0.0, None, None)).fields("effect_differing")


def effect_chart(record: Record) -> Image.Image:
    """The effect of each position, and those of other noise and of the whole prologue."""
    figure, (axes,) = panels()
    style_axes(axes, "Exchange of one prologue token", "prologue position", "mean change of a pixel (0 to 255)")
    parts = record["positions"]
    reach = error_bars(*([_end(part, "effect", end) for part in parts] for end in ("", "_low", "_high")))
    effects = [part["effect"] for part in parts]
    axes.bar(range(len(parts)), effects, 0.7, color=COLOURS[1], yerr=reach, error_kw={"ecolor": INK})
    for name, colour, style, label in (
        ("resampled", 4, "--", "other noise, same prologue"),
        ("whole", 0, "-", "whole prologue exchanged"),
    ):
        ends = [_end(record, name, end) for end in ("_low", "_high")]
        axes.axhspan(*ends, color=COLOURS[colour], alpha=0.15, linewidth=0)
        axes.axhline(record[name], color=COLOURS[colour], linestyle=style, linewidth=2, label=label)
    axes.set_xticks(range(0, len(parts), max(1, len(parts) // 16)))
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    add_legend(axes, loc="upper center", bbox_to_anchor=(0.45, -0.18), ncols=2)
    return picture_of(figure)


def change_map(
    positions: Float64[np.ndarray, "p h w"], whole: Float64[np.ndarray, "h w"], resampled: Float64[np.ndarray, "h w"]
) -> Image.Image:
    """Where the image changes, for each exchanged position and both controls, on one scale."""
    names = [*(f"position {index}" for index in range(len(positions))), "whole prologue", "other noise"]
    maps = np.stack([*positions, whole, resampled])
    return grid_maps("Where the image changes", names, maps, "mean change of a pixel (0 to 255)")


def _examples(images: Intervened, record: Record) -> Image.Image:
    """The first pairs with the strongest positions, in their order."""
    effects = [part["effect"] for part in record["positions"]]
    shown = sorted(sorted(range(len(effects)), key=lambda position: -effects[position])[:_STRONGEST])
    columns = [images.before, *(images.after[position] for position in shown), images.whole, images.resampled]
    labels = ["before", *(f"position {position}" for position in shown), "whole", "other noise"]
    pictures = [thumbnails(to_pil(column[:_EXAMPLES])) for column in columns]
    table = labelled_grid([list(each) for each in zip(*pictures, strict=True)], labels)
    return titled(table, "Visual tokens sampled with the same noise, for changed prologues")


def _end(record: Record, name: str, end: str) -> float:
    """An end of the interval; the figure itself if a single pair gives no interval."""
    value = record[f"{name}{end}"]
    return float(record[name] if value is None else value)
