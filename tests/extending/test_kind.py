"""The recipes of docs/extending.md for an evaluation kind and for a feature network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prologue import Pipeline
from prologue.cli.main import main
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.sampling.manifest import Manifest


@pytest.fixture
def run(tiny_models: Callable[..., Any], tmp_path: Path) -> Path:
    manifest = Manifest(CLASS_NAMES, None, "shapes")
    Pipeline(*tiny_models(image_size=(16, 16), num_classes=8), manifest).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def evaluated(run: Path, *argv: str) -> dict[str, Any]:
    file = run.parent / "figures.json"
    name, *options = argv
    assert main(["evaluate", name, str(run), *options, "--device", "cpu", "--json", str(file)]) == 0
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return written


def test_a_kind_of_ones_own(
    run: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_kind")
    argv = ("my_kind:Colour", "--count", "6")
    written = evaluated(run, *argv)
    (record,) = written["records"]
    assert (record["kind"], record["n"], record["split"]) == ("my_kind:Colour", 6, "validation")
    assert 0 < record["shift_low"] < record["shift"] < record["shift_high"]
    assert written["provenance"]["data"] == "shapes"
    shown = capsys.readouterr().out
    assert "N = 6 held-out images." in shown
    (kept,) = (run / "evaluations").glob("my_kind.Colour-*.json")

    outside_module("my_kind")  # a new process
    assert evaluated(run, *argv, "--batch", "2")["provenance"] == written["provenance"]
    assert f"found in {kept}" in capsys.readouterr().err

    outside_module("my_kind")
    assert main(["report", str(run)]) == 0
    page = run / "report.html"
    assert "prologue --import my_kind report" in page.read_text(encoding="utf-8")
    assert main(["--import", "my_kind", "report", str(run)]) == 0
    assert "shift of the mean colour in reconstructions" in page.read_text(encoding="utf-8").lower()
    assert "The shift is 0 for equal mean colours." in page.read_text(encoding="utf-8")

    outside_module("my_kind")
    source = run.parent / "outside" / "my_kind.py"
    source.write_text(source.read_text(encoding="utf-8").replace("shifts = [", "shifts = [2 * "), encoding="utf-8")
    (edited,) = evaluated(run, *argv)["records"]
    assert edited["shift"] == pytest.approx(2 * record["shift"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_kind:colour_shift", "is not a kind of evaluation"),
        ("my_kind:Color", "no attribute 'Color'"),
        ("my_kinds:Colour", "No module named 'my_kinds'"),
        ("Colour", "`module:name` for your own"),
    ],
)
def test_mistakes_are_named(
    name: str, message: str, run: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_kind")
    assert main(["evaluate", name, str(run)]) == 2
    assert message in capsys.readouterr().err


def test_what_a_kind_lacks_is_named(
    run: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_kind")
    source = run.parent / "outside" / "my_kind.py"
    text = source.read_text(encoding="utf-8").replace("    summary =", "    about =").replace("def rows", "def lines")
    source.write_text(text, encoding="utf-8")
    assert main(["evaluate", "my_kind:Colour", str(run)]) == 2
    assert "'Colour' has no summary and no rows" in capsys.readouterr().err


def test_a_stored_record_imports_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluations").mkdir()
    stored = {"provenance": {}, "records": [{"kind": "antigravity:Kind", "n": 3, "notes": []}]}
    (run / "evaluations" / "antigravity.Kind-0123456789ab.json").write_text(json.dumps(stored), encoding="utf-8")
    assert main(["report", str(run)]) == 0
    assert "does not know this kind" in (run / "report.html").read_text(encoding="utf-8")


def test_a_feature_network_of_ones_own(
    run: Path,
    outside_module: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outside_module("my_features")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(run.parent / "outside")])
    monkeypatch.chdir(run.parent / "outside")  # found in the working folder alone
    features = ("--features", "my_features:edges", "--count", "8")
    written = evaluated(run, "generation", *features)
    (record,) = written["records"]
    assert (record["fd_label"], record["features_hash"], record["is"]) == ("FD-edges@8", None, None)
    assert written["provenance"]["features"] == "edges"
    assert record["precision"] is not None
    assert record["kid_low"] < record["kid"] < record["kid_high"]
    assert "KID-edges" in capsys.readouterr().out
    (record,) = evaluated(run, "reference", *features, "--out", str(run.parent / "train.npz"))["records"]
    assert record["dimension"] == 32
