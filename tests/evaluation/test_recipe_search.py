"""A sweep tries what it says, finds a planted best, and claims no more than intervals allow."""

from __future__ import annotations

import pytest
import torch

from prologue.errors import EvaluationError, SamplingError
from prologue.evaluation.metrics.kid import kernel_distance
from prologue.evaluation.recipe_search import Axes, Plan, Request, axis_values, measure_recipe, run_sweep, sweep_record
from prologue.evaluation.runs import Record
from prologue.sampling.guidance import Guidance
from prologue.sampling.recipe import Recipe

SPLIT = Guidance.split(("constant", 0.7), ("cosine", 3.0, 0.2))


def test_every_combination_once_and_the_rest_from_the_base() -> None:
    base = Recipe(top_k=5, temperature=2.0)
    found = Axes(guidance=(Guidance.none(), Guidance.overall("linear", 9)), scale=(2.0, 3.0), temperature=(0.5, 1.0))
    recipes = found.recipes(base)
    guidances = [Guidance.none(), Guidance.overall("linear", 2), Guidance.overall("linear", 3)]
    assert recipes == [Recipe(guidance, temperature, top_k=5) for guidance in guidances for temperature in (0.5, 1.0)]
    assert Axes(temperature=(1.0, 1.0)).recipes(base) == [base.replace(temperature=1.0)]
    assert Axes(top_k=(None, 3), top_p=(None, 0.5)).recipes(base)[1] == base.replace(top_k=None, top_p=0.5)


def test_segments_and_powers_change_what_they_name() -> None:
    found = Axes(guidance=(SPLIT,), prologue_scale=(1.0, 2.0), visual_scale=(4.0,), power=(0.5,)).recipes(Recipe())
    assert [recipe.guidance for recipe in found] == [
        Guidance.split(("constant", scale), ("cosine", 4.0, 0.5)) for scale in (1.0, 2.0)
    ]
    assert axis_values(found[1]) == {
        "guidance": "split constant cosine",
        "scale": None,
        "prologue scale": 2.0,
        "visual scale": 4.0,
        "power": 0.5,
        "temperature": 1.0,
        "prologue temperature": None,
        "top-k": None,
        "top-p": None,
    }


@pytest.mark.parametrize("stored", [Guidance.none(), Guidance.overall("linear", 4), SPLIT])
def test_the_winner_as_the_new_default_leaves_the_sweep_the_same(stored: Guidance) -> None:
    for axes in (Axes(scale=(1.0, 2.0)), Axes(visual_scale=(1.0, 2.0)), Axes(temperature=(0.5, 1.0))):
        recipes = axes.recipes(Recipe(stored))
        for winner in recipes:
            assert axes.recipes(winner) == recipes


def test_sweeps_of_nothing_are_refused() -> None:
    with pytest.raises(EvaluationError, match="the sweep is empty"):
        Axes().recipes(Recipe())
    with pytest.raises(EvaluationError, match="power has no guidance"):
        Axes(power=(1.0,)).recipes(Recipe())
    with pytest.raises(EvaluationError, match="visual_scale has no guidance"):
        Axes(guidance=(Guidance.overall("cosine", 2),), visual_scale=(1.0,)).recipes(Recipe())
    with pytest.raises(SamplingError, match="temperature"):
        Axes(temperature=(0.0,)).recipes(Recipe())
    for wrong in ({"count": 2}, {"count": 9, "final_count": 8}, {"finalists": 0}, {"method": "luck"}):
        with pytest.raises(EvaluationError, match=next(iter(wrong)).replace("final_", "")):
            Plan(**wrong)  # type: ignore[arg-type]


def planted(request: Request) -> Record:
    """A distance of |temperature − 0.8| within ± 0.15."""
    value = abs(request.recipe.temperature - 0.8)
    return {"kid": value, "kid_low": value - 0.15, "kid_high": value + 0.15, "fd": value, "leads": "kid"}


def temperatures(*values: float) -> list[Recipe]:
    return [Recipe(temperature=value) for value in values]


def test_the_planted_best_wins_a_grid() -> None:
    recipes, default = temperatures(0.5, 0.6, 0.7, 0.81, 0.95), Recipe(temperature=2.0)
    plan = Plan(count=10, final_count=40, finalists=2)
    points = run_sweep(planted, recipes, default, plan, seed=3)
    first, final = points[:5], points[5:]
    assert [point.request.recipe for point in first] == recipes
    assert [point.request.recipe.temperature for point in final] == pytest.approx([0.81, 0.7, 2.0])
    assert {(point.request.count, point.request.final) for point in final} == {(40, True)}
    seeds = [{point.request.seed for point in part} for part in (first, final)]
    assert all(len(each) == 1 for each in seeds)  # paired
    assert seeds[0] != seeds[1]  # not judged by the samples of the choice
    record = sweep_record(points, default, plan, "Shapes")
    assert record["winner"] == recipes[3].to_dict()
    assert (record["changed"], record["distinguishable"], record["measure"]) == (True, True, "KID-Shapes")
    assert (record["recipes"], record["finalists"], len(record["points"])) == (6, 3, 8)


def test_halving_draws_more_of_fewer() -> None:
    recipes = temperatures(*(0.1 * step for step in range(1, 10)))
    points = run_sweep(planted, recipes, Recipe(), Plan("halving", 8, 64, 2))
    rounds = [[p.request for p in points if p.request.round == number] for number in range(4)]
    assert [(len(each), each[0].count) for each in rounds] == [(9, 8), (5, 16), (3, 32), (3, 64)]
    assert rounds[3][0].recipe.temperature == pytest.approx(0.8)
    assert rounds[3][0].final


def test_overlapping_intervals_are_not_distinguishable() -> None:
    plan = Plan(count=10, final_count=40)
    for default, recipes, expected in ((1.0, (0.8,), False), (1.2, (0.8,), True), (0.8, (0.9,), None)):
        points = run_sweep(planted, temperatures(*recipes), Recipe(temperature=default), plan)
        record = sweep_record(points, Recipe(temperature=default), plan, "Shapes")
        assert record["distinguishable"] is expected
        assert record["changed"] is (expected is not None)
        assert all(point["final"] for point in record["points"])  # so few recipes need no first round


class Means:
    name, hash, dimension = "Means", "abc", 3

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3)) / 100


def test_figures_do_not_depend_on_the_batch_and_are_the_kernel_distance(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    reference = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = [
        measure_recipe(tokenizer, prior, Recipe(), Means(), reference, count=12, seed=5, batch=batch)  # type: ignore[arg-type]
        for batch in (12, 5)
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[0]["leads"] == "kid"
    assert found[0]["kid_low"] < found[0]["kid"] < found[0]["kid_high"]
    other = measure_recipe(tokenizer, prior, Recipe(), Means(), reference, count=12, seed=6)  # type: ignore[arg-type]
    assert other["kid"] != found[0]["kid"]
    assert kernel_distance(reference[:10], reference[10:]).value < found[0]["kid"]
