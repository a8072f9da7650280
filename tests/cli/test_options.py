"""Options from argv, and the JSON file of a measurement."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import tyro

from prologue import __version__
from prologue.cli.options import parse
from prologue.errors import ConfigError, SamplingError
from prologue.utils.measurements import provenance, write_measurement
from prologue.utils.options import DeviceOption, JsonOption, SeedOption


@dataclass(frozen=True)
class Options:
    run: tyro.conf.Positional[Path]
    """The run folder."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    count: int = 4
    top_p: float | None = None
    limit: int | Literal["off"] | None = None
    guided: bool = True
    split: bool = False
    device: DeviceOption = "auto"
    seed: SeedOption = 0
    json: JsonOption = None


def _parse(line: str) -> Options:
    return parse(Options, line.split(), "prologue fake", "A command of this test.")


@pytest.mark.parametrize(
    "flags", ["--seed 9223372036854775808", "--seed 9223372036854775805 --count 4", "--seed -9223372036854775809"]
)
def test_seeds_lie_in_64_bits(flags: str) -> None:
    """Of every command, before anything is opened."""
    with pytest.raises(SamplingError, match=r"seeds are whole numbers from -2\*\*63 to 2\*\*63 - 1"):
        _parse(f"r {flags}")
    assert _parse(f"r --seed {2**63 - 3} --count 3").seed == 2**63 - 3
    assert _parse("r --seed -5").seed == -5


@pytest.mark.parametrize(
    ("argv", "named"),
    [([""], "an argument"), (["r", "--json", ""], "--json"), (["r", "--json="], "--json"), (["r", ""], "an argument")],
)
def test_an_empty_argument_is_no_path(argv: list[str], named: str) -> None:
    """A shell variable that is not set would else be the folder in which the command was called."""
    with pytest.raises(ConfigError, match=f"^{named} is empty: give a value, or leave it out$"):
        parse(Options, argv, "prologue fake", "A command of this test.")


def test_a_count_that_no_memory_holds_is_refused() -> None:
    assert _parse("r --count 100000000").count == 10**8
    with pytest.raises(ConfigError, match="--count must be at most 100000000, not 1000000000000"):
        _parse(f"r --count {10**12}")


def test_defaults_and_both_spellings() -> None:
    assert _parse("r") == Options(Path("r"))
    assert _parse("r --top-p 0.5") == _parse("r --top_p 0.5") == Options(Path("r"), top_p=0.5)
    assert _parse("--json out.json --seed 7 r --device cpu").json == Path("out.json")


@pytest.mark.parametrize(
    ("flags", "guided", "split"),
    [
        ("--guided false --split true", False, True),
        ("--guided=False --split=TRUE", False, True),
        ("--no-guided --split", False, True),
        ("--no_guided", False, False),
        ("--guided --no-split", True, False),
    ],
)
def test_booleans(flags: str, guided: bool, split: bool) -> None:
    assert _parse(f"{flags} r a.png b.png") == Options(
        Path("r"), (Path("a.png"), Path("b.png")), guided=guided, split=split
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r --cuont 3", "unrecognized options: --cuont, 3 (did you mean --count?); see `prologue fake --help`"),
        ("r --count x", "--count must be a whole number, not 'x'; see"),
        ("r --count 1e3", "--count must be a whole number, not '1e3'; see"),
        ("r --top-p high", "--top-p must be a number, not 'high'; see"),
        ("r --limit 1.5", "--limit must be a whole number or off, not '1.5'; see"),
        ("r --device tpu", "invalid choice 'tpu' for argument '--device'"),
        ("r --json", "missing value for argument '--json'"),
        ("", "missing from prologue fake: PATH"),
        ("r --split=maybe", "--split must be true or false, not 'maybe'"),
    ],
)
def test_mistakes_are_one_sentence(
    line: str, message: str, encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser frames its messages differently where the output cannot show box characters."""
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: encoding == "utf-8")
    with pytest.raises(ConfigError) as caught:
        _parse(line)
    text = str(caught.value)
    assert text.startswith(message)
    assert "\n" not in text
    assert not set("│╭─") & set(text)
    assert "--- " not in text
    assert capsys.readouterr().err == ""


def test_help_ends_with_the_epilog(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--help"], "prologue fake", "A command of this test.", epilog="fields follow")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "The run folder." in shown
    assert shown.endswith("\n\nfields follow\n")


@pytest.mark.parametrize("columns", ["20", None])
def test_help_is_readable_on_a_narrow_terminal(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((20, 10)))
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        _parse("--help")
    assert "The run folder." in capsys.readouterr().out
    assert os.environ.get("COLUMNS") == columns


def test_measurement_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "measured.json"
    source = provenance(["evaluate", "likelihood", "runs/a b"], dataset="shapes")
    records = [{"nats": np.float32(1.5), "n": torch.tensor(3), "kid": float("nan"), "at": Path("x"), "ci": (1, 2.5)}]
    write_measurement(path, source, records)
    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert written["records"] == [{"nats": 1.5, "n": 3, "kid": None, "at": "x", "ci": [1, 2.5]}]
    assert written["provenance"]["command"] == "prologue evaluate likelihood 'runs/a b'"
    assert written["provenance"]["prologue"] == __version__
    assert written["provenance"]["torch"] == torch.__version__
    assert written["provenance"]["dataset"] == "shapes"
    assert [entry.name for entry in path.parent.iterdir()] == ["measured.json"]
