"""Guidance schedules against METHOD §9, and what cannot be one."""

from __future__ import annotations

import math

import pytest

from prologue.config import LayoutConfig
from prologue.errors import SamplingError
from prologue.models.sequence import SequenceLayout
from prologue.sampling.guidance import Guidance, Schedule
from prologue.sampling.recipe import Recipe

LAYOUT = SequenceLayout(LayoutConfig(4, 8, 5, 16))  # T = 4 + 1 + 5 = 10
PLAIN = SequenceLayout(LayoutConfig(0, 0, 5, 16))


def test_linear_split_schedule() -> None:
    scales = Guidance.split(prologue=("linear", 2.0), visual=("linear", 4.0)).scales(LAYOUT)
    prologue = [0.0 * (1 - t / 4) + 2.0 * t / 4 for t in range(4)]
    visual = [1.0 * (1 - k / 6) + 4.0 * k / 6 for k in range(6)]
    assert scales == pytest.approx(prologue + visual)


def test_split_start_values() -> None:
    scales = Guidance.split(("linear", 2.0), ("cosine", 4.0, 0.5), prologue_start=0.5, visual_start=2.0).scales(LAYOUT)
    assert scales[0] == 0.5
    assert scales[4] == 2.0
    assert scales[7] == pytest.approx(2 + 2 * (1 - math.cos(math.pi * 0.5**0.5)) / 2)
    constant = Guidance.split(("constant", 0.7), ("constant", 3.0), prologue_start=9.0, visual_start=9.0)
    assert constant.scales(LAYOUT) == [0.7] * 4 + [3.0] * 6


def test_overall_schedules() -> None:
    assert Guidance.overall("constant", 3).scales(LAYOUT) == [3] * 10
    assert Guidance.overall("linear", 3).scales(LAYOUT) == pytest.approx([1 + 2 * t / 10 for t in range(10)])
    expected = [1 + 9 * (1 - math.cos(math.pi * (t / 10) ** 1.5)) / 2 for t in range(10)]
    assert Guidance.overall("cosine", 10, 1.5).scales(LAYOUT) == pytest.approx(expected)


def test_split_without_a_prologue_is_its_visual_schedule() -> None:
    assert Guidance.split(("constant", 0.7), ("linear", 2)).scales(PLAIN) == pytest.approx(
        [1 + t / 5 for t in range(5)]
    )


def test_none_is_inactive() -> None:
    assert not Guidance.none().active
    assert Guidance.none().scales(LAYOUT) == [1.0] * 10
    assert Guidance.overall("constant", 1.0).active


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("cubic", 1.0), "cubic"),
        (("cosine", float("nan")), "scale"),
        (("cosine", 2.0, 0.0), "power"),
        (("cosine", float("inf")), "scale"),
    ],
)
def test_impossible_schedules(arguments: tuple, named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        Schedule(*arguments)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, "temperature.*top_k=1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"prologue_temperature": -1.0}, "prologue_temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_impossible_recipes(options: dict, named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        Recipe(**options)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(Guidance.split(("constant", 0.7), ("cosine", 3.75, 0.2)), 0.9, 0.7, 100, 0.95)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
