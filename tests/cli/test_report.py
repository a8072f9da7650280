"""`prologue report` on folders with planted measurements: what is shown, named, folded and refused."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prologue import Pipeline
from prologue.cli.main import main
from prologue.config import RunConfig
from prologue.evaluation.evaluations import store_of
from prologue.evaluation.kinds import base
from prologue.models.weights import file_hash
from prologue.sampling.manifest import Manifest
from prologue.training.run import RunFolder
from prologue.utils.serialization import save_json

KEY = "0123456789ab"
WORDS = {"kind": "likelihood", "n": 3, "split": "validation", "indicative": True, "notes": ["planted note"]}


@pytest.fixture
def run(tiny_models, tmp_path: Path) -> Path:
    """An imported folder without any measurement."""
    folder = tmp_path / "first"
    Pipeline(*tiny_models(), Manifest(("a", "b", "c"))).save_pretrained(folder)
    return folder


def likelihood(nats: float) -> dict[str, Any]:
    """A record that the likelihood kind can put in words."""
    names = ("nats", "bits", "token_bits_per_dimension", "cost", "use")
    names += tuple(f"{part}_{unit}" for part in ("prologue", "eos", "visual") for unit in ("nats", "bits"))
    record: dict[str, Any] = WORDS | {"visual_entropy": 1.0, "visual_entropy_per_token": 1.0, "diversity": 1.0}
    for name in names:
        record |= {name: nats, f"{name}_low": nats - 1, f"{name}_high": nats + 1}
    return record | {"gain": None}


def plant(run: Path, record: dict[str, Any], key: str = KEY, hour: int = 10, options: str = "", **facts: Any) -> Path:
    path = store_of(run).folder / f"{record['kind']}-{key}.json"
    command = f"prologue evaluate {record['kind']} {run} {options}".strip()
    origin = {"command": command, "time": f"2026-01-01T{hour}:00:00+00:00", "prologue": "0.1.0", "run": str(run)}
    save_json(path, {"provenance": origin | facts, "records": [record]})
    return path


def page_of(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    capsys.readouterr()
    assert main(["report", *map(str, argv)]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("Report: "))
    return path.read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Headings, the cells of each table, and what lies in folds."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.folded: list[str] = []
        self.pictures: list[str] = []
        self._depth = 0
        self._into: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag == "details"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "h2"):
            self._into = self.rows[-1] if tag != "h2" else self.headings
            self._into.append("")
        if tag == "img":
            given = dict(attrs)
            assert (given["src"] or "").startswith("data:image/png;base64,")
            self.pictures.append(given["alt"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "details"
        if tag in ("td", "th", "h2"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] = " ".join([self._into[-1], data.strip()]).strip()
        if self._depth:
            self.folded.append(data)


def row_of(page: str, label: str) -> list[str]:
    return next(row for row in _Page(page).rows if row and row[0] == label)


def test_a_run_without_measurements_has_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(capsys, run)
    assert _Page(page).headings == ["Runs", "Not measured yet"]
    assert "nothing measured yet" in page
    for kind in ("reconstruction", "generation", "likelihood"):
        assert f"prologue evaluate {kind} {run}<" in page
    assert f"prologue evaluate sweep {run} --temperature 0.8,0.9,1<" in page
    assert not (run / "pictures").exists()


def test_runs_stand_side_by_side_with_words_and_commands(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "second"
    shutil.copytree(run, other)
    plant(run, likelihood(7.0))
    path = plant(other, likelihood(5.0), options="--batch 3")
    Image.new("RGB", (4000, 100), "red").save(path.with_name(f"{path.stem}-bits.png"))
    page = page_of(capsys, run, other)
    assert row_of(page, "measure") == ["measure", "first", "second"]
    assert row_of(page, "nats per image") == ["nats per image", "7.00 6.00 … 8.00", "5.00 4.00 … 6.00"]
    assert page.count("N = 3 held-out images.") == 1  # said of both at once
    assert page.count("Planted note.") == 1
    assert f"prologue evaluate likelihood {other} --batch 3" in page
    assert _Page(page).pictures == ["Likelihood of second: bits"]
    assert 'width="1600" height="40"' in page
    assert _Page(page).headings == ["Runs", "Likelihood", "Not measured yet"]


def test_the_newest_of_a_question_leads_and_earlier_ones_are_folded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(run, likelihood(4.0), "aaaaaaaaaaaa", 10, "--count 3")
    plant(run, likelihood(5.0), "bbbbbbbbbbbb", 12, "--count 3 --json x.json --again")
    plant(run, likelihood(6.0), "cccccccccccc", 11, "--count=9 --seed 1")
    page = page_of(capsys, run)
    assert row_of(page, "measure") == ["measure", "--count 3", "--count 9 --seed 1"]
    assert [cell[:4] for cell in row_of(page, "nats per image")[1:]] == ["5.00", "6.00"]
    folded = "".join(_Page(page).folded)
    assert "4.00" in folded
    assert "Earlier measurements (1)" in folded
    assert "6.00 … 8.00" not in folded


def test_an_unknown_kind_and_damaged_files_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(run, {"kind": "aura", "n": 3, "glow": 0.5, "glow_low": 0.4, "glow_high": 0.6, "list": [1], "notes": ["hm"]})
    torn = store_of(run).folder / f"likelihood-{KEY}.json"
    torn.write_text('{"provenance"')
    plant(run, {"kind": "generation", "n": 3}, "bbbbbbbbbbbb")  # of another form
    (run / "evaluations" / "notes.json").write_text("{}")  # somebody else's
    found, faults = store_of(run).all()
    assert [item.record["kind"] for item in found] == ["aura", "generation"]
    assert len(faults) == 1
    page = page_of(capsys, run)
    assert row_of(page, "glow") == ["glow", "0.5 0.4 … 0.6"]
    assert "does not know this kind" in page
    assert torn.name in page
    assert "generation-bbbbbbbbbbbb.json does not have the form" in page
    assert "notes.json" not in page
    assert _Page(page).headings == ["Runs", "Aura", "Not measured yet"]


@pytest.mark.parametrize("kind", ["base", "../base", "os"])
def test_only_kinds_are_imported(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plant(run, {"kind": "aura", "n": 3})
    written = json.loads(path.read_text())
    written["records"][0]["kind"] = kind
    save_json(path, written)
    assert "does not know this kind" in page_of(capsys, run)
    assert not hasattr(base, "rows")


def test_figures_of_other_weights_are_marked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = file_hash(run / "tokenizer" / "model.safetensors")
    plant(run, likelihood(7.0), weights={"tokenizer": tokenizer, "prior": "0" * 64})
    assert "prior changed after this was measured" in " ".join(page_of(capsys, run).split())
    plant(run, likelihood(7.0), weights={"tokenizer": tokenizer})
    assert "changed after this" not in page_of(capsys, run)


def test_settings_and_curves_of_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, steps in (("a", 100), ("b", 200)):
        config = RunConfig(seed=steps)
        folder = RunFolder.open(tmp_path / name, config, {"data": "shapes"})
        for step in range(3):
            folder.log({"stage": "tokenizer", "step": step, "l1": 1.0 / (1 + step)})
    page = page_of(capsys, tmp_path / "a", tmp_path / "b")
    assert row_of(page, "seed") == ["seed", "100", "200"]
    assert _Page(page).pictures == ["Stage 1: reconstruction losses"]
    assert "not finished" in page


def test_the_page_of_another_command_is_not_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").write_text("the demo's")
    page_of(capsys, run)
    page_of(capsys, run)
    assert (run / "report.html").read_text() == "the demo's"
    assert (run / "evaluations.html").is_file()
    (run / "report.html").unlink()
    page_of(capsys, run)
    changed = (run / "report.html").stat().st_mtime_ns
    page_of(capsys, run)
    assert (run / "report.html").stat().st_mtime_ns > changed


def test_refusals(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, named in (
        ([], "RUN"),
        ([str(tmp_path / "nowhere")], "nowhere does not exist"),
        ([str(tmp_path)], "neither a run nor an imported folder"),
        ([str(run), str(run)], "named twice"),
        ([str(run), "--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["report", *argv]) == 2
        message = capsys.readouterr().err
        assert named in message
        assert message.count("\n") == 1


def test_folders_of_one_name_are_told_apart(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x", "y"):
        shutil.copytree(run, tmp_path / name / "run")
        plant(tmp_path / name / "run", likelihood(1.0))
    page = page_of(capsys, tmp_path / "x" / "run", tmp_path / "y" / "run")
    assert row_of(page, "measure") == ["measure", "x/run", "y/run"]
