"""The demo from end to end on tiny models, with a plan that is given instead of measured."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prologue.cli.main import main
from prologue.errors import RunError
from prologue.models.weights import file_hash
from prologue.sampling.manifest import Manifest
from prologue.studies.demo import recipe, story
from prologue.studies.demo.plan import Plan, Sizes
from prologue.studies.demo.story import DemoRequest, DemoResult, stage_seconds, tell
from prologue.training.progress import Silent
from prologue.utils.serialization import load_json

pytestmark = pytest.mark.slow

SECTIONS = (
    "What prologue tokens are", "Targets", "Samples by class", "Reconstructions", "One prologue, many images",
    "Measures", "Training", "Plan and time", "What a few hours buy", "Go on with this run",
)  # fmt: skip
PICTURES = {"recognition", "guided", "unguided", "reconstructions", "resampled", "original", "opening"}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"WIDTH": 32, "DEPTH": 1, "PRIOR_WIDTH": 32, "PRIOR_DEPTH": 1, "TOKENIZER_BATCH": 8}
    sizes |= {"PRIOR_BATCH": 8, "CODEBOOK_SIZE": 32, "PROLOGUE_TOKENS": 2, "PROLOGUE_CODEBOOK_SIZE": 8, "PATCH_SIZE": 8}
    sizes |= {"CHECKPOINT_SECONDS": 10.0, "VALIDATION_IMAGES": 64, "UNGUIDED": recipe.UNGUIDED[:1]}
    for name, value in (sizes | {"GUIDED": recipe.GUIDED[:1]}).items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(recipe, "training_images", lambda minutes: 64)
    monkeypatch.setattr(story, "calibrate", lambda *args: None)
    monkeypatch.setattr(story, "make_plan", _plan)


def _plan(timings: dict[str, Any], minutes: float, elapsed: float) -> Plan:
    return Plan(minutes, len(timings) > 1, 12, 12, Sizes(16, 8, 32, 1, 2), {}, {"calibration": 1.0, "tokenizer": 2.0})


def _request(out: Path, **changes: Any) -> DemoRequest:
    values: dict[str, Any] = {"minutes": 1.0, "compare": False, "out": out, "seed": 0, "device": "cpu"}
    return DemoRequest(**(values | {"provenance": {"command": "prologue demo"}} | changes), began=time.perf_counter())


class _Killed(Exception):
    pass


class _KilledAt(Silent):
    """Ends everything in the middle of a step, as a lost machine does."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step, self.name = stage, step, ""

    def begin(self, name: str, start: int, total: int, batch: int) -> None:
        self.name = name

    def advance(self, done: int) -> None:
        if self.name == self.stage and done >= self.step:
            raise _Killed

    def show(self, done: int, record: dict[str, Any]) -> None:
        self.advance(done)


def _hashes(out: Path) -> list[str]:
    return [file_hash(out / part / "model.safetensors") for part in ("tokenizer", "prior")]


def _forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("was done a second time")

    for name in names:
        monkeypatch.setattr(name, forbidden)


def _figures(result: DemoResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in result.records]


def test_a_demo_trains_measures_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    result = tell(_request(out), Silent())
    page = result.report.read_text(encoding="utf-8")
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in page
    assert "With and without a prologue" not in page
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import|<script|<link", re.sub(r"data:image/[^\"]*", "", page))
    files = {path.stem for path in (out / "pictures").glob("*.png")}
    assert files >= PICTURES
    assert page.count("data:image/png;base64,") == len(files) - 1  # the original is for the commands alone
    assert len(result.lines) == 3
    stored = load_json(out / "measures.json")["records"]
    names = {record["name"] for record in stored}
    assert {f"prologue/{name}" for name in ("choice", "guided", "unguided", "likelihood", "resampling")} <= names
    choice = next(record for record in stored if record["name"] == "prologue/choice")
    manifest = Manifest.load(out)
    assert manifest.recipe is not None
    assert manifest.recipe.to_dict() == choice["chosen"]
    # Once more: nothing is planned, trained or measured again.
    before = _hashes(out)
    _forbid(monkeypatch, "prologue.studies.demo.story.calibrate", "prologue.studies.demo.measure.evaluate_generation")
    _forbid(monkeypatch, "prologue.studies.demo.measure.evaluate_likelihood", "prologue.training.train.run_stage")
    assert _figures(tell(_request(out), Silent())) == _figures(result)
    assert _hashes(out) == before


@pytest.mark.parametrize("place", [("tokenizer", 7), ("prior", 5), ("samples", 1)])
def test_a_killed_demo_continues_to_the_same_bits(tmp_path: Path, place: tuple[str, int]) -> None:
    whole = tell(_request(tmp_path / "whole"), Silent())
    with pytest.raises(_Killed):
        tell(_request(tmp_path / "killed"), _KilledAt(*place))
    continued = tell(_request(tmp_path / "killed"), Silent())
    assert _hashes(tmp_path / "killed") == _hashes(tmp_path / "whole")
    assert _figures(continued) == _figures(whole)


def test_a_picture_is_there_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(story, "calibrate", die)
        with pytest.raises(_Killed):
            tell(_request(tmp_path / "demo"), Silent())
    with Image.open(tmp_path / "demo" / "opening.png") as picture:
        assert picture.width > 8 * 32
    tell(_request(tmp_path / "demo"), Silent())


@pytest.mark.parametrize(("change", "told"), [({"minutes": 2.0}, "minutes: 1.0 in the run, 2.0 now"),
                                              ({"compare": True}, "compare: False in the run, True now"),
                                              ({"seed": 3}, "seed: 0 in the run, 3 now")])  # fmt: skip
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(_Killed):
        tell(_request(tmp_path / "demo"), _KilledAt("tokenizer", 3))
    before = (tmp_path / "demo" / "run.json").read_bytes()
    with pytest.raises(RunError, match=re.escape(told)) as error:
        tell(_request(tmp_path / "demo", **change), Silent())
    assert "another --out, or delete the folder" in str(error.value)
    assert (tmp_path / "demo" / "run.json").read_bytes() == before


def test_the_plan_is_in_the_run_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        tell(_request(tmp_path / "demo"), _KilledAt("tokenizer", 1))
    stored = load_json(tmp_path / "demo" / "run.json")["facts"]["demo"]
    assert stored["tokenizer_steps"] == 12
    assert Plan.from_dict(stored).minutes == 1.0


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="choose another --out"):
        tell(_request(tmp_path), Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_comparison_has_both_runs(tmp_path: Path) -> None:
    result = tell(_request(tmp_path / "demo", compare=True), Silent())
    page = result.report.read_text(encoding="utf-8")
    for text in ("<h2>With and without a prologue</h2>", "without (2d)", "FLOPs", "The paper&#39;s effect"):
        assert text in page or "the paper&#39;s effect" in page
    there = load_json(tmp_path / "demo" / "compare-2d" / "run.json")["config"]
    assert (there["tokenizer"]["variant"], there["tokenizer"]["prologue_tokens"]) == ("2d", 0)
    assert there["tokenizer_training"]["steps"] == 12
    names = {record["name"] for record in result.records}
    assert {"prologue/guided", "2d/guided", "2d/likelihood"} <= names


def test_stage_seconds_come_from_the_logged_rates() -> None:
    records = [{"step": 10, "images_per_second": 40.0}, {"step": 15, "images_per_second": 20.0}]
    assert stage_seconds(records, 8) == pytest.approx(10 * 8 / 40 + 5 * 8 / 20)


def _raising(error: BaseException) -> Callable[..., DemoResult]:
    def tell_nothing(request: DemoRequest, progress: object) -> DemoResult:
        raise error

    return tell_nothing


def test_ctrl_c_says_how_to_continue(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(story, "tell", _raising(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    assert "Run the same command again to continue" in capfd.readouterr().err


@pytest.mark.parametrize("options", [["--quick", "--minutes", "3"], ["--minutes", "0"], ["--minutes", "nan"]])
def test_impossible_budgets_are_refused(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *options]) == 2
    assert "minutes" in capfd.readouterr().err


def test_the_command_writes_its_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "demo", tmp_path / "figures.json"
    assert main(["demo", "--quick", "--out", str(out), "--device", "cpu", "--json", str(file)]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[-1] == f"report: {out / 'report.html'}"
    assert load_json(out / "run.json")["facts"]["demo"]["minutes"] == 1.5
    data = load_json(file)
    assert data["provenance"]["command"].startswith("prologue demo --quick")
    assert any(record["name"] == "prologue/guided" for record in data["records"])
