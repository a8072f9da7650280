"""Tables from planted results: every format, and hand-computed cells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prologue.studies.reproduce.claims import judge_claims
from prologue.studies.reproduce.figures import cell_figures
from prologue.studies.reproduce.scales import SCALES
from prologue.studies.reproduce.tables import make_tables
from prologue.studies.reproduce.written import markdown, verdict_line, write_tables

Make = Callable[..., Any]


def _results(make: Make, seeds: int = 3) -> dict[Any, Any]:
    rows = []
    for seed in range(seeds):
        rows.append(make("2d", seed, unguided__kid=3.0 + 0.1 * seed, unguided__fd=20.0 * 2**seed))
        rows.append(
            make("prologue", seed, unguided__kid=1.0, layout__coarse_ratio=0.5, probe__prologue=0.4,
                 likelihood__cost=4.0 + seed)
        )  # fmt: skip
    return dict(rows)


def test_cells_by_hand() -> None:
    cell = cell_figures([1.0, 2.0, 3.0], logarithmic=False)
    assert (cell["n"], cell["mean"]) == (3, 2.0)
    assert cell["low"] == pytest.approx(2 - 2.48414, abs=1e-4)
    logs = cell_figures([20.0, 40.0, 80.0], logarithmic=True)
    assert logs["mean"] == pytest.approx(40.0)
    assert logs["high"] == pytest.approx(40.0 * 2**2.48414, rel=1e-3)
    # A distance that is not positive has no logarithm, so plain means are taken.
    assert cell_figures([-1.0, 3.0], logarithmic=True)["mean"] == 1.0
    assert cell_figures([5.0], logarithmic=True)["low"] is None
    rates = cell_figures([1.0, 2.0, 3.0], logarithmic=False, bounds=(0.0, 100.0))
    assert rates["low"] == 0.0


def test_every_table_has_its_rows(make: Make) -> None:
    results = _results(make)
    tables = make_tables(results, judge_claims(results))
    assert set(tables) == {
        "Claims", "Budgets", "Reconstruction", "Generation", "What the prologue carries", "Inside the tokens",
        "Against 2d, seed by seed",
    }  # fmt: skip
    generation = tables["Generation"]
    assert generation.head[1:3] == ["gFD-X, unguided", "gKID-X, unguided"]
    assert [row[0] for row in generation.rows] == ["2d", "prologue"]
    assert generation.rows[0][1].startswith("40 (")
    assert generation.rows[0][-1] == "3"
    # Nobody has guided samples, so nobody has a column for them.
    assert not any("guided" in head.replace("unguided", "") for head in generation.head)
    carried = {row[0]: row[1] for row in tables["What the prologue carries"].rows}
    assert carried["prologue"].startswith("5.00 (")


def test_the_comparison_is_paired(make: Make) -> None:
    results = _results(make)
    rows = {row[1]: row for row in make_tables(results, [])["Against 2d, seed by seed"].rows}
    # 20 / (20, 40, 80): geometric mean ratio 0.5
    assert rows["gFD-X, unguided, ratio"][2] == "0.5"
    assert rows["gKID-X, unguided, difference"][2] == "-2.1"


def test_cells_of_fewer_seeds_say_so(make: Make) -> None:
    results = _results(make) | dict([make("prologue", 3, unguided__kid=1.0)])
    carried = next(row for row in make_tables(results, [])["What the prologue carries"].rows if row[0] == "prologue")
    assert carried[1].startswith("5.00, 3 seeds (")
    assert carried[-1] == "4"


def test_captions_say_what_was_kept_and_by_which_version(make: Make) -> None:
    results = _results(make)
    tables = make_tables(results, [])
    assert "best one during training" not in tables["What the prologue carries"].caption
    assert "versions" not in tables["Budgets"].caption
    for number, result in enumerate(results.values()):
        result |= {"prior_kept_step": 10 - number, "prior_steps": 10}
        result["provenance"] = {"prologue": f"0.{number // 3}"}
    tables = make_tables(results, [])
    assert "in 1 of 6 runs the last one." in tables["What the prologue carries"].caption
    assert "Made by several versions of the package: 0.0, 0.1." in tables["Budgets"].caption


def test_markdown_has_one_line_for_each_row(make: Make) -> None:
    results = _results(make)
    claims = judge_claims(results)
    tables = make_tables(results, claims)
    text = markdown("The verdict.", tables, ["said"])
    assert text.startswith("**The verdict.**\n\n- said\n")
    for title, table in tables.items():
        block = text.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
        assert len(block) == 2 + len(table.rows)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in block} == {len(table.head) + 1}


def test_files_are_written(tmp_path: Path, make: Make) -> None:
    results = _results(make)
    said = write_tables(tmp_path, results, SCALES["minutes"], {"command": "prologue reproduce"})
    assert any(text.startswith("Confirmed over 3 seeds") for text in said)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["effect"] == "confirmed"
    assert record["provenance"]["command"] == "prologue reproduce"
    cost = next(each for each in record["records"] if each["figure"] == "likelihood.cost")
    assert cost["by_seed"] == {"0": 4.0, "1": 5.0, "2": 6.0}
    assert len(record["pieces"]) == 6
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("Verdicts", "Claims", "Generation", "By seed"):
        assert f"<h2>{title}</h2>" in page
    assert "Confirmed: the paper&#39;s effect" in page
    assert (tmp_path / "tables.md").read_text(encoding="utf-8").count("## ") >= 7


def test_the_first_line_is_the_verdict(make: Make) -> None:
    assert verdict_line(judge_claims(dict([make("2d", 0)])))[1] is None
    text, good = verdict_line(judge_claims(dict([make("2d", 0), make("prologue", 0)])))
    assert text.startswith("Undecided: the paper's effect")
    assert good is None
    worse = [make("2d", seed) for seed in range(3)] + [make("prologue", s, unguided__kid=9.0) for s in range(3)]
    assert verdict_line(judge_claims(dict(worse)))[1] is False


def test_captions_state_numbers_and_what_real_images_give(make: Make) -> None:
    results = dict([make("2d", seed, recognition__originals_rate=0.9 + 0.1 * seed) for seed in range(2)])
    caption = make_tables(results, [])["Generation"].caption
    assert "N = 2048 against 2048." in caption
    assert "recognises the class in 95.0 % of the held-out images" in caption
    assert "recognises" not in make_tables(dict([make("2d", 0)]), [])["Generation"].caption


def test_a_recipe_at_an_end_of_what_was_tried_is_marked(make: Make) -> None:
    def recipe(best: float, *tried: float) -> str:
        piece, result = make("2d", 0)
        result["measures"]["unguided"]["recipe"] = {"temperature": best}
        result["measures"]["choice_unguided"] = {"tried": [{"recipe": {"temperature": each}} for each in tried]}
        budgets = make_tables({piece: result}, [])["Budgets"]
        return budgets.rows[0][budgets.head.index("unguided recipe")]

    assert recipe(0.8, 1.0, 0.9, 0.8) == "T 0.8†"
    assert recipe(0.9, 1.0, 0.9, 0.8) == "T 0.9"
    # Of two values each is an end.
    assert recipe(0.9, 1.0, 0.9) == "T 0.9"


def test_a_claim_says_whose_recipes_lie_at_an_end(make: Make) -> None:
    def note(best: float, **figures: float) -> list[str]:
        results = dict([make(name, seed, **figures) for name in ("2d", "prologue") for seed in (4, 5)])
        for piece, result in results.items():
            value = best if piece.variant == "2d" else 1.0
            result["measures"]["unguided"]["recipe"] = {"temperature": value}
            tried = [{"recipe": {"temperature": each}} for each in (0.9, 1.0, 1.1)]
            result["measures"]["choice_unguided"] = {"tried": tried}
        return next(list(claim.notes) for claim in judge_claims(results) if claim.key == "closer-1.5")

    said = ["the temperature that 2d chose is at an end of the sweep for seeds 4, 5"]
    assert note(1.1) == note(1.1, n=20_000) == said
    assert note(1.0) == []


def test_many_runs_have_many_chances_to_seem_memorised(make: Make) -> None:
    def said(runs: int) -> str:
        near = {
            "coarse_share": 0.1,
            "coarse_share_low": 0.05,
            "coarse_share_expected": 0.01,
            "coarse_share_chance": 0.01,
        }
        figures = {f"unguided__memorisation__{key}": value for key, value in near.items()}
        results = dict([make("2d", 0, **figures), *(make("2d", seed) for seed in range(1, runs))])
        return make_tables(results, [])["Memorisation"].caption

    assert "There are more than by chance in 2d-s0." in said(2)
    assert "In no run" in said(4)


def test_runs_whose_copies_would_not_be_found_are_named(make: Make) -> None:
    share = "unguided__memorisation__coarse_copies_share"
    results = dict([make("2d", 0, **{share: 0.8}), make("1d", 0, **{share: 0.02})])
    assert "This is no evidence for 1d-s0, where most copies" in make_tables(results, [])["Memorisation"].caption


def test_reconstructions_are_told_beside_the_samples(make: Make) -> None:
    results = dict(make("2d", seed, reconstruction__fd=4.0 + seed, unguided__fd=20.0) for seed in range(2))
    table = make_tables(results, [])["Reconstruction"]
    assert table.rows[0][table.head.index("rFD / unguided gFD")].startswith("0.22 (")


def test_times_are_of_the_seeds_that_all_variants_have(make: Make) -> None:
    results = dict([make("2d", 0), make("2d", 1), make("prologue", 0)])
    next(result for piece, result in results.items() if piece.seed == 1)["seconds"]["tokenizer"] = 99.0
    assert [row[5] for row in make_tables(results, [])["Budgets"].rows] == ["10 + 6", "10 + 6"]
