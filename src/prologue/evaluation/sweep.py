"""Which sampling recipe comes closest to the training images: many are tried with few samples, the best with many.

Recipes of a round are drawn with the same seeds and measured against the same reference, so that they differ in the
recipe alone. Each round has seeds of its own: a choice must not be judged by the samples that it was made on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prologue.data.source import ImageSet
from prologue.errors import EvaluationError
from prologue.evaluation.distances import INDICATIVE, moments_of
from prologue.evaluation.features import FeatureExtractor
from prologue.evaluation.generation import draw_samples, uniform_classes
from prologue.evaluation.metrics.frechet import frechet_from_moments
from prologue.evaluation.metrics.kid import LEAST, kernel_distance
from prologue.evaluation.runs import ProgressCallback, Record, choose_images, crop_features, unwatched
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer
from prologue.sampling.guidance import Guidance, Schedule
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import derive_seed

Method = Literal["grid", "halving"]
_PARTS = ("whole", "prologue", "visual")


@dataclass(frozen=True)
class Axes:
    """The values to try of each option; an empty axis is not swept. None among top-k or top-p is no limit."""

    guidance: tuple[Guidance, ...] = ()
    scale: tuple[float, ...] = ()
    """Of the guidance over the whole sequence."""
    prologue_scale: tuple[float, ...] = ()
    visual_scale: tuple[float, ...] = ()
    power: tuple[float, ...] = ()
    """Of every cosine schedule of a guidance."""
    temperature: tuple[float, ...] = ()
    prologue_temperature: tuple[float, ...] = ()
    top_k: tuple[int | None, ...] = ()
    top_p: tuple[float | None, ...] = ()

    def recipes(self, base: Recipe) -> list[Recipe]:
        """Every combination, each once; options that are not swept are those of `base`.

        Raises `EvaluationError` where nothing is swept, or where scales or powers have no guidance to change, and
        `SamplingError` for impossible values.
        """
        if not any(getattr(self, each.name) for each in dataclasses.fields(self)):
            raise EvaluationError("the sweep is empty: give values for at least one option of the recipe")
        names = ("temperature", "prologue_temperature", "top_k", "top_p")
        swept = [name for name in names if getattr(self, name)]
        found = [
            base.replace(guidance=guidance, **dict(zip(swept, values, strict=True)))
            for guidance in self._guidances(base.guidance)
            for values in itertools.product(*(getattr(self, name) for name in swept))
        ]
        return list(dict.fromkeys(found))

    def _guidances(self, stored: Guidance) -> list[Guidance]:
        found: list[Guidance] = []
        used: set[str] = set()
        for template in self.guidance or (self._template(stored),):
            values: list[dict[str, Schedule | None]] = [{part: getattr(template, part) for part in _PARTS}]
            scales = zip(_PARTS, ("scale", "prologue_scale", "visual_scale"), strict=True)
            for part, name in scales:
                if getattr(self, name) and getattr(template, part) is not None:
                    used.add(name)
                    values = [
                        each | {part: dataclasses.replace(_there(each[part]), scale=scale)}
                        for each in values
                        for scale in getattr(self, name)
                    ]
            if self.power and any(_bends(schedule) for schedule in values[0].values()):
                used.add("power")
                values = [
                    {
                        part: dataclasses.replace(_there(schedule), power=power) if _bends(schedule) else schedule
                        for part, schedule in each.items()
                    }
                    for each in values
                    for power in self.power
                ]
            found += [Guidance(**each) for each in values]
        for name in ("scale", "prologue_scale", "visual_scale", "power"):
            if getattr(self, name) and name not in used:
                lacks = "a cosine schedule" if name == "power" else "one over the whole sequence"
                lacks = "one for each segment" if name in ("prologue_scale", "visual_scale") else lacks
                raise EvaluationError(f"{name} has no guidance to change: among the guidances there must be {lacks}")
        return found

    def _template(self, stored: Guidance) -> Guidance:
        """What scales and powers change where no guidance is named: the stored one, if it has what they change."""
        if self.scale:
            return stored if stored.whole is not None else Guidance.overall("cosine", 1.0)
        if self.prologue_scale or self.visual_scale:
            return stored if stored.visual is not None else Guidance.split(("constant", 1.0), ("cosine", 1.0))
        return stored


def _bends(schedule: Schedule | None) -> bool:
    return schedule is not None and schedule.kind == "cosine"


def _there(schedule: Schedule | None) -> Schedule:
    assert schedule is not None
    return schedule


def axis_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as its place on each axis that a sweep has; None where it has none."""
    guidance = recipe.guidance
    parts = {part: getattr(guidance, part) for part in _PARTS}
    there = [schedule for schedule in parts.values() if schedule is not None]
    form = "none" if not there else "overall" if guidance.whole is not None else "split"
    bent = [schedule.power for schedule in there if _bends(schedule)]
    return {
        "guidance": " ".join([form, *(schedule.kind for schedule in there)]),
        "scale": None if guidance.whole is None else guidance.whole.scale,
        "prologue scale": None if guidance.prologue is None else guidance.prologue.scale,
        "visual scale": None if guidance.visual is None else guidance.visual.scale,
        "power": bent[-1] if bent else None,
        "temperature": recipe.temperature,
        "prologue temperature": recipe.prologue_temperature,
        "top-k": recipe.top_k,
        "top-p": recipe.top_p,
    }


def reference_features(
    extractor: FeatureExtractor,
    images: ImageSet,
    count: int,
    *,
    seed: int = 0,
    batch: int = 64,
    watch: ProgressCallback = unwatched,
) -> Float[Tensor, "n d"]:
    """Features of center crops of `count` images at random, or of all where there are not more."""
    indices = choose_images(len(images), count, seed, "reference")
    return crop_features(extractor, images, indices, batch=batch, watch=watch, what="training images")


def measure_recipe(
    tokenizer: Tokenizer,
    prior: Prior,
    recipe: Recipe,
    extractor: FeatureExtractor,
    reference: Float[Tensor, "n d"],
    *,
    count: int,
    seed: int,
    batch: int = 64,
) -> Record:
    """Distances of `count` samples with uniform labels to the reference; sample `i` has the seed `seed + i`."""
    class_ids = uniform_classes(prior.num_classes, count)
    drawn = draw_samples(tokenizer, prior, recipe, class_ids, seed=seed, batch=batch)
    features = torch.cat([extractor(samples.images) for samples in drawn])
    kid = kernel_distance(features, reference)
    few = min(len(features), len(reference)) < INDICATIVE
    distances = {"kid": kid.value, "kid_low": kid.low, "kid_high": kid.high}
    return distances | {
        "fd": frechet_from_moments(*moments_of(features), *moments_of(reference)),
        "leads": "kid" if few else "fd",
    }


@dataclass(frozen=True)
class Plan:
    """How much is drawn: every recipe with `count` samples, at last the best `finalists` with `final_count`.

    `halving` leaves out the worse half after each round and draws twice as many samples in the next one.
    """

    method: Method = "grid"
    count: int = 512
    final_count: int = 2048
    finalists: int = 3

    def __post_init__(self) -> None:
        if self.method not in ("grid", "halving"):
            raise EvaluationError(f"unknown method {self.method!r}: choose grid or halving")
        if self.count < LEAST:
            raise EvaluationError(f"count must be at least {LEAST}, which a distance needs, not {self.count}")
        if self.final_count < self.count:
            raise EvaluationError(f"final-count must not be below count: {self.final_count} < {self.count}")
        if self.finalists < 1:
            raise EvaluationError(f"finalists must be at least 1, not {self.finalists}")


@dataclass(frozen=True)
class Request:
    """One recipe to measure: in which round, and with how many samples from which seed on."""

    recipe: Recipe
    round: int
    count: int
    seed: int
    final: bool


@dataclass(frozen=True)
class Point:
    """What was found of a request."""

    request: Request
    figures: Record

    @property
    def distance(self) -> float:
        """The leading one."""
        return float(self.figures[self.figures["leads"]])


def run_sweep(
    measure: Callable[[Request], Record],
    recipes: Sequence[Recipe],
    default: Recipe,
    plan: Plan,
    *,
    seed: int = 0,
    watch: ProgressCallback = unwatched,
) -> list[Point]:
    """All that was measured, the final round last. `default` is always in the final."""

    def round_of(chosen: Sequence[Recipe], count: int, number: int, final: bool = False) -> list[Point]:
        first = derive_seed(seed, "evaluation", "sweep", number) % 2**31
        requests = [Request(recipe, number, count, first, final) for recipe in chosen]
        what = f"{'final' if final else f'round {number + 1}'}: {len(requests)} recipes, {count} samples each"
        return [Point(requests[index], measure(requests[index])) for index in watch(range(len(requests)), what)]

    points: list[Point] = []
    left, count, number = list(recipes), plan.count, 0
    while len(left) > plan.finalists:
        measured = round_of(left, count, number)
        points += measured
        count, number = 2 * count, number + 1
        more = plan.method == "halving" and count < plan.final_count
        keep = max(plan.finalists, math.ceil(len(left) / 2)) if more else plan.finalists
        left = [point.request.recipe for point in sorted(measured, key=lambda point: point.distance)[:keep]]
    return points + round_of(list(dict.fromkeys([*left, default])), plan.final_count, number, final=True)


def sweep_record(points: Sequence[Point], default: Recipe, plan: Plan, extractor_name: str) -> Record:
    """The winner beside the default, both of the final round, and all points.

    `distinguishable` is whether the intervals of their kernel distances are apart; None where the default won.
    """
    final = [point for point in points if point.request.final]
    winner = min(final, key=lambda point: point.distance)
    stayed = next(point for point in final if point.request.recipe == default)
    record: Record = {"kind": "sweep", "n": plan.final_count, "method": plan.method, "n_first": plan.count}
    record |= {"recipes": len({point.request.recipe for point in points}), "finalists": len(final)}
    leads = winner.figures["leads"]
    record |= {"leads": leads, "measure": f"{leads.upper()}-{extractor_name}", "kid_name": f"KID-{extractor_name}"}
    record |= {"fd_name": f"FD-{extractor_name}", "indicative": leads == "kid"}
    record |= {"winner": winner.request.recipe.to_dict(), "default": default.to_dict()}
    for name, point in (("winner", winner), ("default", stayed)):
        record |= {f"{name}_{key}": point.figures[key] for key in ("kid", "kid_low", "kid_high", "fd")}
    apart = winner.figures["kid_high"] < stayed.figures["kid_low"]
    record |= {"changed": winner is not stayed, "distinguishable": apart if winner is not stayed else None}
    record["points"] = [
        {
            "recipe": point.request.recipe.to_dict(),
            "round": point.request.round,
            "final": point.request.final,
            "n": point.request.count,
            "seed": point.request.seed,
            **point.figures,
        }
        for point in points
    ]
    return record | {"notes": []}
