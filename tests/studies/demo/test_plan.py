"""The schedule fits its budget on machines of any speed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prologue.config import Variant
from prologue.errors import ConfigError, RunError
from prologue.studies.demo import recipe
from prologue.studies.demo.plan import MARGIN, Plan, Timings, make_plan
from prologue.studies.demo.recipe import demo_config
from prologue.utils.serialization import to_dict

FAST = Timings(
    tokenizer_step=0.4,
    prior_step=0.3,
    token_view=0.001,
    sampled_row=0.006,
    reconstructed_image=0.005,
    rendered_image=0.0003,
    checkpoint=0.1,
)


def _slower(factor: float) -> Timings:
    return Timings(**{name: factor * value for name, value in vars(FAST).items()})


def _plan(minutes: float, elapsed: float = 10.0, **timings: Timings) -> Plan:
    known: dict[Variant, Timings] = {"prologue": FAST, **timings}  # type: ignore[dict-item]
    return make_plan(known, minutes, elapsed)


@settings(deadline=None)
@given(minutes=st.floats(4, 90), factor=st.floats(0.05, 2), both=st.booleans())
def test_a_plan_uses_its_budget_and_keeps_it(minutes: float, factor: float, both: bool) -> None:
    timings: dict[Any, Timings] = {"prologue": _slower(factor)}
    if both:
        timings["2d"] = _slower(0.7 * factor)
    planned = sum(make_plan(timings, minutes, 10).seconds.values())
    step = factor * 1.7 * (FAST.tokenizer_step + FAST.prior_step) * 1.01 + 0.1
    assert 60 * minutes * (1 - MARGIN) - step <= planned <= 60 * minutes * (1 - MARGIN) + 0.1


def test_a_slower_machine_takes_fewer_steps() -> None:
    fast, slow = _plan(10), _plan(10, prologue=_slower(2))
    assert 0 < slow.tokenizer_steps < fast.tokenizer_steps
    assert 0 < slow.prior_steps < fast.prior_steps


def test_two_variants_share_the_budget_in_equal_steps() -> None:
    alone, both = _plan(10), _plan(10, **{"2d": FAST})
    assert both.compare
    assert not alone.compare
    assert both.tokenizer_steps < alone.tokenizer_steps / 1.9


def test_time_that_is_gone_is_not_planned_again() -> None:
    assert _plan(10, elapsed=100).tokenizer_steps < _plan(10, elapsed=5).tokenizer_steps


def test_the_stages_divide_the_training_time() -> None:
    seconds = _plan(10).seconds
    share = seconds["tokenizer"] / (seconds["tokenizer"] + seconds["prior"])
    assert share == pytest.approx(recipe.TOKENIZER_SHARE, abs=0.005)


def test_a_small_budget_measures_fewer_images() -> None:
    assert _plan(10).samples == 512
    small = _plan(1.2, elapsed=15, prologue=_slower(2))
    assert small.samples < 512
    assert sum(small.seconds.values()) < 72


def test_a_budget_for_nothing_says_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"--minutes \d") as error:
        _plan(0.3, elapsed=15)
    enough = float(str(error.value).split("--minutes ")[1])
    assert _plan(enough + 0.1, elapsed=15).tokenizer_steps >= 10


def test_a_stored_plan_is_read_back() -> None:
    plan = _plan(10, **{"2d": FAST})
    assert Plan.from_dict(to_dict(plan)) == plan
    with pytest.raises(RunError, match="another --out"):
        Plan.from_dict({**to_dict(plan), "colour": 1})


@pytest.mark.parametrize("steps", [10, 57, 3000, 40_000])
def test_every_schedule_follows_the_steps(steps: int) -> None:
    config = demo_config(steps, steps, 10)
    training = config.tokenizer_training
    for optimizer, half_life in (
        (training.autoencoder, training.ema_half_life),
        (training.prior, training.prior_ema_half_life),
        (config.prior_training.optimizer, config.prior_training.ema_half_life),
    ):
        assert optimizer.warmup + optimizer.hold < steps / 2
        assert half_life == pytest.approx(max(1, steps / 50))
    assert all(0 < at < steps / 5 + 1 for at in training.prologue_kmeans)
    assert 3 <= steps / config.sample_every <= 6


def test_the_baseline_differs_in_the_prologue_alone() -> None:
    ours, theirs = demo_config(100, 100, 10), demo_config(100, 100, 10, variant="2d")
    assert theirs.tokenizer.prologue_tokens == 0
    assert dataclasses.replace(ours.tokenizer, variant="2d", prologue_tokens=0) == theirs.tokenizer
    assert (ours.data, ours.prior, ours.prior_training) == (theirs.data, theirs.prior, theirs.prior_training)
    assert ours.tokenizer_training.autoencoder == theirs.tokenizer_training.autoencoder
