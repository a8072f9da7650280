"""The demo from end to end on tiny models, with a given plan instead of a measured one."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prologue.cli.main import main
from prologue.models.weights import file_hash
from prologue.sampling.manifest import Manifest
from prologue.studies.demo import evaluation, recipe, training
from prologue.studies.demo.plan import Plan
from prologue.training import progress
from prologue.utils.serialization import load_json, save_json

pytestmark = pytest.mark.slow

NAMES = ["reconstruction", "recognition", "guided", "unguided", "likelihood", "layout"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"width": 32, "depth": 1, "prior_width": 32, "prior_depth": 1, "codebook_size": 32, "patch_size": 8}
    sizes |= {"prologue_tokens": 2, "prologue_codebook_size": 8, "prior_batch": 8}
    monkeypatch.setattr(recipe, "small", partial(recipe.small, **sizes))
    monkeypatch.setattr(recipe, "CHECKPOINT_SECONDS", 10.0)
    monkeypatch.setattr(recipe, "VALIDATION_IMAGES", 64)
    monkeypatch.setattr(recipe, "training_images", lambda minutes: 64)
    monkeypatch.setattr(training, "calibrate", lambda *args: None)
    monkeypatch.setattr(training, "make_plan", _plan)


def _plan(timings: dict[str, Any], minutes: float, elapsed: float) -> Plan:
    return Plan(minutes, len(timings) > 1, 12, 12, 16, 32, {"calibration": 1.0, "tokenizer": 2.0})


def _demo(out: Path, *flags: str) -> int:
    return main(["demo", "--minutes", "1", "--out", str(out), "--device", "cpu", *flags])


class _Killed(BaseException):
    pass


def _kill(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Let the process end in the middle of a step."""
    begin = progress.Terminal.begin

    def begun(self: Any, name: str, *args: int) -> None:
        self.at_stage = name
        begin(self, name, *args)

    def advance(self: Any, done: int, *args: Any) -> None:
        if self.at_stage == stage and done >= step:
            raise _Killed

    patch.setattr(progress.Terminal, "begin", begun)
    patch.setattr(progress.Terminal, "advance", advance)
    patch.setattr(progress.Terminal, "show", advance)


def _kill_evaluation(patch: pytest.MonkeyPatch, kind: str) -> None:
    whole = evaluation.evaluate

    def stopped(measured: Any, *args: Any) -> Any:
        if measured.name == kind:
            raise _Killed
        return whole(measured, *args)

    patch.setattr(evaluation, "evaluate", stopped)


def _hashes(out: Path) -> list[str]:
    return [file_hash(out / part / "model.safetensors") for part in ("tokenizer", "prior")]


def _records(out: Path) -> dict[str, dict[str, Any]]:
    return {record["name"]: record for record in load_json(out.with_suffix(".json"))["records"]}


def test_a_demo_trains_evaluates_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "demo", tmp_path / "demo.json"
    assert _demo(out, "--json", str(file)) == 0
    captured = capfd.readouterr()
    said = captured.out.splitlines()
    assert captured.err.count("images in 8 classes") == 2  # those of the training, and once those of all evaluations
    assert [line.partition(":")[0] for line in said] == ["reconstructions", "samples", "targets met", "report"]
    assert re.fullmatch(r"samples: asked class recognised in \d+ % of 16", said[1])
    assert re.fullmatch(r"targets met: \d of 2 \(set for 10 minutes, this run had 1\)", said[2])
    assert said[3] == f"report: {out / 'report.html'}"
    page = (out / "report.html").read_text(encoding="utf-8")
    for title in ("Runs", "Reconstruction", "Generation", "Likelihood", "Layout", "Training", "Not measured yet"):
        assert f"<h2>{title}</h2>" in page
    assert list(_records(out)) == [f"prologue/{name}" for name in NAMES]
    kept = {re.sub("-[0-9a-f]{12}", "", file.stem) for file in (out / "evaluations").glob("*.png")}
    assert {"generation-samples", "reconstruction-images", "layout-resamples"} <= kept
    assert page.count("data:image/png;base64,") >= len(kept)
    assert load_json(file)["provenance"]["command"].startswith("prologue demo --minutes 1")
    assert Manifest.load(out).recipe == recipe.RECIPE
    assert _records(out)["prologue/guided"]["recipe"] == recipe.RECIPE.to_dict()
    # The same command plans, trains and measures nothing again.
    before, records = _hashes(out), _records(out)
    for name in ("studies.demo.training.calibrate", "training.train.run_stage", "evaluation.store.Store.keep"):
        monkeypatch.setattr(f"prologue.{name}", lambda *args, **options: pytest.fail("was done again"))
    assert _demo(out, "--json", str(file)) == 0
    assert capfd.readouterr().out.splitlines() == said
    assert _records(out) == records
    assert _hashes(out) == before


@pytest.mark.parametrize("place", [("tokenizer", 7), ("prior", 5), ("likelihood", 0)])
def test_a_killed_demo_continues_to_the_same_bits(tmp_path: Path, place: tuple[str, int]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _demo(whole, "--json", f"{whole}.json") == 0
    with pytest.MonkeyPatch.context() as patch:
        if place[1]:
            _kill(patch, *place)
        else:
            _kill_evaluation(patch, place[0])
        with pytest.raises(_Killed):
            _demo(killed)
    assert _demo(killed, "--json", f"{killed}.json") == 0
    assert _hashes(killed) == _hashes(whole)
    assert _records(killed) == _records(whole)


def test_a_demo_of_an_earlier_version_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        _kill(patch, "prior", 5)
        with pytest.raises(_Killed):
            _demo(out)
    record = load_json(out / "run.json")
    sizes = {"samples": 16, "choice_samples": 8, "measured_images": 32, "shown_rows": 2, "resamples": 3}
    plan = {"minutes": 1.0, "compare": False, "tokenizer_steps": 12, "prior_steps": 12, "sizes": sizes}
    plan |= {"timings": {"prologue": {"figure": 0.1}}, "seconds": {"choice": 1.0}}
    save_json(out / "run.json", record | {"facts": record["facts"] | {"demo": plan}})
    assert _demo(out) == 0
    assert load_json(out / "run.json")["facts"]["demo"] == plan


def test_a_picture_is_there_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "calibrate", die)
        with pytest.raises(_Killed):
            _demo(tmp_path / "demo")
    with Image.open(tmp_path / "demo" / "opening.png") as picture:
        assert picture.width > 8 * 32
    assert _demo(tmp_path / "demo") == 0


def test_other_settings_are_refused_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        _kill(patch, "tokenizer", 1)
        with pytest.raises(_Killed):
            _demo(out)
    before = (out / "run.json").read_bytes()
    stored = load_json(out / "run.json")["facts"]["demo"]  # before the first step
    assert Plan.from_dict(stored) == _plan({}, 1.0, 0.0)
    for flags, told in (
        (["--minutes", "2"], "minutes: 1.0 in the run, 2.0 now"),
        (["--compare"], "compare: False in the run, True now"),
        (["--seed", "3"], "seed: 0 in the run, 3 now"),
    ):
        capfd.readouterr()
        assert _demo(out, *flags) == 2
        error = capfd.readouterr().err
        assert told in error
        assert "another --out, or delete the folder" in error
    assert (out / "run.json").read_bytes() == before


def test_folders_of_something_else_are_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert _demo(tmp_path) == 2
    assert "choose another --out" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_comparison_has_both_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert _demo(out, "--compare", "--json", f"{out}.json") == 0
    assert "without a prologue (2d), samples: asked class recognised in" in capfd.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "compare-2d" in page
    there = load_json(out / "compare-2d" / "run.json")["config"]
    assert (there["tokenizer"]["variant"], there["tokenizer"]["prologue_tokens"]) == ("2d", 0)
    assert there["tokenizer_training"]["steps"] == 12
    both = [f"prologue/{name}" for name in NAMES] + [f"2d/{name}" for name in NAMES if name != "layout"]
    assert list(_records(out)) == both


@pytest.mark.parametrize(("minutes", "rate", "worst", "line"), [
    (10.0, 0.5, 0.9, "targets met: 2 of 2"),
    (10.0, 0.49, 0.89, "targets met: 0 of 2"),
    (60.0, 0.7, 0.95, "targets met: 2 of 3"),
    (1.5, 0.9, 0.95, "targets met: 2 of 2 (set for 10 minutes, this run had 1.5)"),
])  # fmt: skip
def test_targets(minutes: float, rate: float, worst: float, line: str) -> None:
    classes = [{"rate": 1.0}, {"rate": worst}]
    measured = {"recognition": {"by_class": classes}, "guided": {"recognition": {"rate": rate}}}
    assert evaluation.targets(_plan({}, minutes, 0.0), measured) == line


def test_ctrl_c_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_demo", interrupted)
    assert _demo(tmp_path) == 130
    assert "Run the same command again to continue" in capfd.readouterr().err


@pytest.mark.parametrize("options", [["--quick", "--minutes", "3"], ["--minutes", "0"], ["--minutes", "nan"]])
def test_impossible_budgets_are_refused(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *options]) == 2
    assert "minutes" in capfd.readouterr().err


def test_quick_is_a_budget(tmp_path: Path) -> None:
    assert main(["demo", "--quick", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    assert load_json(tmp_path / "demo" / "run.json")["facts"]["demo"]["minutes"] == 1.5
