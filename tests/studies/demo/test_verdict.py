"""What the report says follows from its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prologue.evaluation.versions import VERSIONS
from prologue.sampling.recipe import Recipe
from prologue.studies.demo import verdict
from prologue.studies.demo.ledger import Ledger
from prologue.studies.demo.measure import choose_recipe
from prologue.studies.demo.plan import Plan, Sizes


def _rate(rate: float, n: int = 512, worst: float | None = None) -> dict[str, Any]:
    each = {"class": "star", "n": n // 8, "rate": rate if worst is None else worst}
    return {"rate": rate, "rate_low": rate - 0.04, "rate_high": rate + 0.04, "n": n, "by_class": [each]}


def _samples(rate: float, kid: float = 0.5) -> dict[str, Any]:
    return {"recognition": _rate(rate), "n": 512, "kid": kid, "kid_error": 0.01, "kid_name": "KID-Shapes"}


def _measures(rate: float, worst: float = 0.95, use: float = 6.0, kid: float = 0.5) -> dict[str, dict[str, Any]]:
    carried = {"cost": 4.0, "use": use, "diversity": 9.0, "n": 1024, "indicative": False, "collapsed": use < 0.1}
    return {
        "choice": {"chosen": {"a": 1}, "guided": {"a": 1}, "unguided": {"a": 2}},
        "guided": _samples(rate, kid),
        "unguided": _samples(rate, kid),
        "recognition": _rate(0.97, 1024, worst),
        "reconstruction": {"psnr": 25.0},
        "likelihood": carried,
    }


def _plan(minutes: float) -> Plan:
    return Plan(minutes, False, 1, 1, Sizes(512, 64, 1024, 6, 6), {}, {})


def test_targets_are_met_or_missed() -> None:
    assert [each.met for each in verdict.targets(_plan(10), _measures(0.5))] == [True, True]
    assert [each.met for each in verdict.targets(_plan(10), _measures(0.49, worst=0.89))] == [False, False]
    assert [each.met for each in verdict.targets(_plan(60), _measures(0.7))] == [True, True, False]


def test_the_verdict_says_what_was_missed() -> None:
    text, good = verdict.verdict(_plan(10), _measures(0.4), 9.5)
    assert not good
    assert "1 of 2 targets are met; missed: the asked class" in text
    assert "40 % of 512" in text
    text, good = verdict.verdict(_plan(1.5), _measures(0.6), 1.4)
    assert good
    assert "this run was given 1.5" in text


def test_a_prologue_that_carries_little_is_called_so() -> None:
    assert len(verdict.carried(_measures(0.5))) == 1
    assert "does not pay for itself" in verdict.carried(_measures(0.5, use=2.0))[1]
    assert "collapsed" in verdict.carried(_measures(0.5, use=0.01))[1]


def test_the_comparison_concludes_from_intervals() -> None:
    same = verdict.comparison(_measures(0.5), _measures(0.52))[-1]
    assert "does not show at this size: no difference" in same
    # Beyond its own interval (6.1 points), but not beyond that for four differences.
    chance = verdict.comparison(_measures(0.57), _measures(0.5))[-1]
    assert "no difference" in chance
    assert "shows here" in verdict.comparison(_measures(0.8, kid=0.2), _measures(0.5))[-1]
    assert "without a prologue samples better" in verdict.comparison(_measures(0.5), _measures(0.8, kid=0.2))[-1]
    assert "disagree" in verdict.comparison(_measures(0.8, kid=0.9), _measures(0.5))[-1]


def test_better_samples_are_not_always_the_papers_effect() -> None:
    ours, theirs = _measures(0.8, kid=0.2), _measures(0.5)
    collapsed = ours | {"likelihood": ours["likelihood"] | {"collapsed": True}}
    assert "its prologue has collapsed" in verdict.comparison(collapsed, theirs)[-1]
    sharper = ours | {"reconstruction": ours["reconstruction"] | {"psnr": theirs["reconstruction"]["psnr"] + 2.8}}
    assert "do not reconstruct equally well" in verdict.comparison(sharper, theirs)[-1]


def test_resamples_no_nearer_than_others_are_called_so() -> None:
    record = {"n": 48, "images": 8, "n_same_class": 48, "pixels_same_prologue": 0.2, "pixels_same_class": 0.3}
    record |= {"layout_same_prologue": 0.1, "layout_same_class": 0.2, "layout_nearer": 0.1, "layout_nearer_high": 0.2}
    assert "fixes part of the layout" in verdict.stays(record | {"layout_nearer_low": 0.02})
    assert "fixes nothing" in verdict.stays(record | {"layout_nearer_low": -0.02})


def test_the_recipe_is_the_best_recognised_and_among_equals_the_nearest() -> None:
    def evaluate(recipe: Recipe) -> dict[str, Any]:
        whole = recipe.guidance.whole
        rate = {None: 0.3, 1.5: 0.5, 2.0: 0.7, 3.0: 0.71}[whole.scale if whole else None]
        return {"n": 64, "recognition": {"rate": rate}, "kid": rate + 0.1 * recipe.temperature}

    choice = choose_recipe(evaluate)
    # 0.70 and 0.71 cannot be told apart with 64 samples, so the lower distance decides.
    assert choice["chosen"] == choice["guided"]
    assert choice["chosen"]["guidance"]["whole"]["scale"] == 2.0
    assert choice["chosen"]["temperature"] == 0.9
    assert choice["unguided"]["guidance"]["whole"] is None
    assert len(choice["candidates"]) == 8


def test_a_record_is_made_again_when_its_inputs_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    for inputs, expected in (({"n": 1}, 1), ({"n": 1}, 1), ({"n": 2}, 2)):
        assert Ledger(tmp_path / "m.json", {}).get("a", inputs, make)["value"] == expected
    (tmp_path / "m.json").write_text("{")
    assert Ledger(tmp_path / "m.json", {}).get("a", {"n": 2}, make)["value"] == 3
    old = json.loads((tmp_path / "m.json").read_text())
    del old["records"][0]["inputs"]["versions"]  # as it was written before there were versions
    (tmp_path / "m.json").write_text(json.dumps(old))
    assert Ledger(tmp_path / "m.json", {}).get("a", {"n": 2}, make)["value"] == 3
    monkeypatch.setitem(VERSIONS, "generation", 2)
    for _ in range(2):
        assert Ledger(tmp_path / "m.json", {}).get("a", {"n": 2}, make)["value"] == 4
