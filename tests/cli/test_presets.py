"""`prologue presets`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prologue import presets
from prologue.cli._overrides import resolve_run_config
from prologue.cli.main import main


def test_prints_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "small-64"]) == 0
    file = tmp_path / "config.json"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert resolve_run_config("base-b", file, {}) == presets.preset("small-64")


def test_lists_every_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--json", str(tmp_path / "presets.json")]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in presets.names())
    written = json.loads((tmp_path / "presets.json").read_text(encoding="utf-8"))
    assert [record["name"] for record in written["records"]] == presets.names()
    assert written["provenance"]["command"].startswith("prologue presets")


def test_refuses_an_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "small-23"]) == 2
    assert "did you mean 'small-32'" in capsys.readouterr().err
