"""`prologue evaluate sweep` on tiny saved models: the winner is stored, a stopped sweep goes on, mistakes are named."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prologue import Pipeline
from prologue.cli.main import main
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.evaluation.kinds import sweep
from prologue.evaluation.store import key_of
from prologue.sampling.guidance import Guidance
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils import locks
from prologue.utils.rng import derive_seed

STORED = Recipe(Guidance.overall("linear", 2), temperature=3.0)
SMALL = ["--count", "4", "--final-count", "8", "--finalists", "1", "--features", "shapes", "--device", "cpu"]


@pytest.fixture
def run(tiny_models, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    manifest = Manifest(CLASS_NAMES, STORED, "shapes")
    Pipeline(*tiny_models(image_size=(16, 16), num_classes=8), manifest).save_pretrained(folder)
    return folder


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Distances without drawing: |temperature − 0.8|. What is measured is listed."""
    measured: list[tuple[float, int]] = []

    def measure(tokenizer: Any, prior: Any, recipe: Recipe, *_: Any, count: int, **__: Any) -> dict[str, Any]:
        measured.append((recipe.temperature, count))
        value = abs(recipe.temperature - 0.8)
        return {"kid": value, "kid_low": value - 0.1, "kid_high": value + 0.1, "fd": value, "leads": "kid"}

    monkeypatch.setattr(sweep, "measure_recipe", measure)
    return measured


def swept(run: Path, *options: str) -> int:
    return main(["evaluate", "sweep", str(run), *SMALL, *options])


def as_lines(partial: Path) -> Path:
    """Write the points of a stopped sweep as earlier versions did: one file of lines, the last one truncated."""
    points = {file.stem: json.loads(file.read_text())["records"][0] for file in partial.glob("point-*.json")}
    assert len(points) == 2
    lines = []
    seed = derive_seed(0, "evaluation", "sweep", 0) % 2**31
    stored = Manifest.load(partial.parents[1]).recipe
    assert stored is not None
    for temperature in (0.5, 0.9):
        inputs = [stored.replace(temperature=temperature).to_dict(), 4, seed]
        request = json.dumps(inputs, sort_keys=True)
        lines.append(json.dumps({"request": request, "figures": points[f"point-{key_of(inputs)}"]}))
    shutil.rmtree(partial)
    partial.with_suffix(".partial.jsonl").write_text("\n".join([*lines, '{"request": "cut o']))
    return partial.with_suffix(".partial.jsonl")


def record_of(run: Path) -> dict[str, Any]:
    (path,) = (run / "evaluations").glob("sweep-*.json")
    record: dict[str, Any] = json.loads(path.read_text())["records"][0]
    return record


def test_the_winner_becomes_the_default_and_the_same_again_is_found(
    run: Path, planted: list[tuple[float, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept(run, "--temperature", "0.5,0.9,1", "--no-store") == 0
    assert Manifest.load(run).recipe == STORED
    assert sorted(set(planted)) == [(0.5, 4), (0.9, 4), (0.9, 8), (1.0, 4), (3.0, 8)]
    shown = capsys.readouterr().out
    assert "Best: guidance overall:linear:2:1, temperature 0.9." in shown
    assert "It is closer than the previous default" in shown
    assert "Not stored" in shown
    assert record_of(run)["default"] == STORED.to_dict()
    planted.clear()
    for stored in ("Stored as the run's default recipe", "The run's default recipe is the best"):
        assert swept(run, "--temperature", "0.5,0.9,1") == 0
        captured = capsys.readouterr()
        assert "found in" in captured.err
        assert stored in captured.out
    assert planted == []
    assert Pipeline.from_pretrained(run).recipe == STORED.replace(temperature=0.9)
    names = sorted(path.suffix for path in (run / "evaluations").iterdir())
    assert names == [".json", ".png"]


@pytest.mark.usefixtures("planted")
def test_a_run_at_which_another_process_is_at_work_keeps_its_recipe_for_now(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    with ThreadPoolExecutor(1) as pool, locks.folder_lock(run):
        assert pool.submit(swept, run, "--temperature", "0.5,0.9,1").result() == 0
        assert "note: the recipe is not stored" in capsys.readouterr().err
    assert swept(run, "--temperature", "0.5,0.9,1") == 0
    assert "Stored as the run's default recipe" in capsys.readouterr().out


def test_what_cannot_be_told_apart_is_said(
    run: Path, planted: list[tuple[float, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    Manifest(CLASS_NAMES, STORED.replace(temperature=0.9), "shapes").save(run)
    assert swept(run, "--temperature", "0.85,2") == 0
    assert "not distinguishable from the previous default" in capsys.readouterr().out
    assert swept(run, "--temperature", "5,6") == 0
    assert "No other recipe is closer" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_stopped_sweep_goes_on(
    version: str,
    run: Path,
    planted: list[tuple[float, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = sweep.measure_recipe

    def stops(*args: Any, **options: Any) -> dict[str, Any]:
        if len(planted) == 2:
            raise KeyboardInterrupt
        return whole(*args, **options)

    options = ("--temperature", "0.5,0.9,1")
    monkeypatch.setattr(sweep, "measure_recipe", stops)
    assert swept(run, *options) == 130
    (partial,) = (run / "evaluations").iterdir()
    assert partial.name.startswith("sweep-")
    assert partial.suffix == ".partial"
    if version == "earlier":
        partial = as_lines(partial)
    monkeypatch.setattr(sweep, "measure_recipe", whole)
    assert swept(run, *options) == 0
    assert planted == [(0.5, 4), (0.9, 4), (1.0, 4), (0.9, 8), (3.0, 8)]
    assert "continuing after 2 points" in capsys.readouterr().err
    assert not partial.exists()
    stopped = record_of(run)
    assert swept(run, *options, "--again", "--no-store") == 0
    again = record_of(run)
    assert again["points"][:4] == stopped["points"][:4]  # the default was another one by then


def test_samples_are_drawn_and_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swept(run, "--guidance", "none", "overall:constant:1", "--scale", "2,3", "--top-k", "off,4") == 0
    record = record_of(run)
    assert (record["n"], record["n_reference"], record["features"]) == (8, 8, "Shapes")
    assert len([point for point in record["points"] if not point["final"]]) == 6
    assert all(point["kid_low"] < point["kid"] < point["kid_high"] for point in record["points"])
    shown = capsys.readouterr().out
    assert "N = 4" in shown
    assert "KID-Shapes leads" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "the sweep is empty"),
        (["--temperature", "1,x"], "--temperature '1,x' cannot be read"),
        (["--top-k", "1.5"], "--top-k"),
        (["--guidance", "much"], "--guidance 'much' cannot be read"),
        (["--temperature", "0,1"], "temperature must be positive"),
        (["--temperature", "1,2", "--count", "2"], "count must be at least 3"),
        (["--temperature", "1,2", "--count", "9"], "final-count must not be below count"),
        (["--visual-scale", "1,2", "--guidance", "none"], "visual_scale has no guidance"),
    ],
)
def test_mistakes_are_named(options: list[str], named: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swept(run, *options) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.splitlines()[-1].startswith("error: ")
    assert message.count("error: ") == 1
    assert not (run / "evaluations").exists()


def test_runs_that_lack_what_is_swept(tiny_models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"image_size": (16, 16)}
    plain, nameless = tmp_path / "plain", tmp_path / "nameless"
    models = tiny_models(**size, num_classes=8, prior_prologue=False)
    Pipeline(*models, Manifest(CLASS_NAMES, None, "shapes")).save_pretrained(plain)
    Pipeline(*tiny_models(**size, num_classes=0), Manifest((), None, "shapes")).save_pretrained(nameless)
    assert swept(plain, "--prologue-temperature", "0.5,1") == 2
    assert "no prologue tokens" in capsys.readouterr().err
    assert swept(nameless, "--scale", "1,2") == 2
    assert "no classes" in capsys.readouterr().err
