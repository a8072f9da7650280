"""Search of the sampling recipe closest to the training images: many with few samples, then the best with many.

Recipes of a round have the same seeds and the same reference, so only the recipe differs. Each round has its own seeds,
so that a choice is not judged by the samples that it was made on.
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
from prologue.evaluation.metrics.frechet import frechet_from_moments
from prologue.evaluation.metrics.kid import LEAST, kernel_distance
from prologue.evaluation.runs import ProgressCallback, Record, choose_images, crop_features, unwatched
from prologue.evaluation.samples import draw_samples, uniform_classes
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer
from prologue.sampling.guidance import Guidance, Schedule
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import derive_seed

Method = Literal["grid", "halving"]
_SCALES = {"scale": "whole", "prologue_scale": "prologue", "visual_scale": "visual"}
"""Axes of scales, with the schedule of a guidance that each changes."""
_PARTS = tuple(_SCALES.values())


@dataclass(frozen=True)
class Axes:
    """The values to try of each option; an empty axis is not searched. None in `top_k` or `top_p` is no limit."""

    guidance: tuple[Guidance, ...] = ()
    scale: tuple[float, ...] = ()
    """Scales of guidance for the whole sequence."""
    prologue_scale: tuple[float, ...] = ()
    visual_scale: tuple[float, ...] = ()
    power: tuple[float, ...] = ()
    """Powers of every cosine schedule."""
    temperature: tuple[float, ...] = ()
    prologue_temperature: tuple[float, ...] = ()
    top_k: tuple[int | None, ...] = ()
    top_p: tuple[float | None, ...] = ()

    def recipes(self, base: Recipe) -> list[Recipe]:
        """Every combination once, with the other options of `base`.

        Raises:
            EvaluationError: no axis has values, or scales or powers have no guidance to change.
            SamplingError: a value is invalid.
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
            for name, part in _SCALES.items():
                scales, schedule = getattr(self, name), getattr(template, part)
                if scales and schedule is not None:
                    used.add(name)
                    changed = [dataclasses.replace(schedule, scale=scale) for scale in scales]
                    values = [each | {part: schedule} for each in values for schedule in changed]
            if self.power and any(_is_cosine(schedule) for schedule in values[0].values()):
                used.add("power")
                values = [
                    {part: _with_power(schedule, power) for part, schedule in each.items()}
                    for each in values
                    for power in self.power
                ]
            found += [Guidance(**each) for each in values]
        for name in (*_SCALES, "power"):
            if getattr(self, name) and name not in used:
                lacks = {"power": "a cosine schedule", "scale": "one schedule for the whole sequence"}
                raise EvaluationError(
                    f"{name} has no guidance to change: it needs a guidance with "
                    f"{lacks.get(name, 'one schedule for each segment')}"
                )
        return found

    def _template(self, stored: Guidance) -> Guidance:
        """The guidance that scales and powers change if none is given: the stored one, if it has such a schedule."""
        if self.scale:
            return stored if stored.whole is not None else Guidance.overall("cosine", 1.0)
        if self.prologue_scale or self.visual_scale:
            return stored if stored.visual is not None else Guidance.split(("constant", 1.0), ("cosine", 1.0))
        return stored


def _is_cosine(schedule: Schedule | None) -> bool:
    return schedule is not None and schedule.kind == "cosine"


def _with_power(schedule: Schedule | None, power: float) -> Schedule | None:
    if schedule is None or not _is_cosine(schedule):
        return schedule
    return dataclasses.replace(schedule, power=power)


def axis_values(recipe: Recipe) -> dict[str, Any]:
    """The value of a recipe on each axis; None if it has none."""
    guidance = recipe.guidance
    parts = {part: getattr(guidance, part) for part in _PARTS}
    there = [schedule for schedule in parts.values() if schedule is not None]
    form = "none" if not there else "overall" if guidance.whole is not None else "split"
    powers = [schedule.power for schedule in there if _is_cosine(schedule)]
    scales = {name.replace("_", " "): getattr(parts[part], "scale", None) for name, part in _SCALES.items()}
    return {
        "guidance": " ".join([form, *(schedule.kind for schedule in there)]),
        **scales,
        "power": powers[-1] if powers else None,
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
    """Features of the center crops of `count` random images, or of all if there are fewer."""
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
    """Distances of `count` samples with uniform classes to the reference; sample `i` has seed `seed + i`."""
    class_ids = uniform_classes(prior.num_classes, count)
    drawn = draw_samples(tokenizer, prior, recipe, class_ids, seed=seed, batch=batch)
    features = torch.cat([extractor(samples.images) for samples in drawn])
    kid = kernel_distance(features, reference)
    few = min(len(features), len(reference)) < INDICATIVE
    return {
        "kid": kid.value,
        "kid_low": kid.low,
        "kid_high": kid.high,
        "fd": frechet_from_moments(*moments_of(features), *moments_of(reference)),
        "leads": "kid" if few else "fd",
    }


@dataclass(frozen=True)
class Plan:
    """Numbers of samples: `count` for every recipe, then `final_count` for the best `finalists`.

    `halving` drops the worse half after each round and doubles the samples in the next one.
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
    """A recipe to measure in a round with `count` samples from `seed` on."""

    recipe: Recipe
    round: int
    count: int
    seed: int
    final: bool


@dataclass(frozen=True)
class Point:
    """The figures of a request."""

    request: Request
    figures: Record

    @property
    def distance(self) -> float:
        """The leading distance."""
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
    """All points, those of the final round last. `default` is always a finalist."""

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
    """The winner and the default, both of the final round, and all points.

    `distinguishable` is whether the intervals of their kernel distances are disjoint; None if the default won.
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
