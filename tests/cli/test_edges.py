"""Odd terminals, odd places to write to, and home folders, for all commands."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
import types
import typing
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from prologue.cli._overrides import resolve_run_config
from prologue.cli.generate import GenerateOptions
from prologue.cli.main import COMMANDS, main
from prologue.cli.options import parse
from prologue.cli.report import ReportOptions
from prologue.cli.train import TrainOptions
from prologue.data.pictures import file_name
from prologue.evaluation.kinds import KINDS, named_kind
from prologue.presets import preset
from prologue.utils import files
from prologue.utils.options import LOCATION, OUTPUT_FILE

pytestmark = pytest.mark.slow


def _options_of_all_commands() -> list[type]:
    """The options dataclass of each command and kind of evaluation: the last one that its module defines."""
    names = [COMMANDS.get(name).__module__ for name in COMMANDS]
    names += [f"prologue.evaluation.kinds.{kind}" for kind in KINDS]
    found = []
    for module in map(import_module, names):
        kinds = [
            each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__
        ]
        found += [each for each in kinds if dataclasses.is_dataclass(each) and each.__name__.endswith("Options")]
    return found


def _encoded(argv: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", streams[0])
        changed.setattr(sys, "stderr", streams[1])
        assert main(argv) in (0, 2)
        for stream in streams:
            stream.flush()
    return streams[0].buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_that_cannot_be_encoded_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in (["--help"], ["presets"], ["trän…"], *([name, "--help"] for name in COMMANDS)):
        _encoded(argv, encoding, monkeypatch)
    for kind in KINDS:
        _encoded(["evaluate", kind, "--help"], encoding, monkeypatch)
    assert "small-32" in _encoded(["presets"], encoding, monkeypatch)


def test_a_locale_without_utf_8(tmp_path: Path) -> None:
    surrounding = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    surrounding.pop("PYTHONIOENCODING", None)
    code = "from prologue.data.pictures import file_name; print(file_name(3, 'caf\\xe9 \\u03c4', 0))"
    done = subprocess.run([sys.executable, "-c", code], env=surrounding, capture_output=True, check=False)
    assert done.stdout == b"00003_caf_seed0.png\n", done.stderr
    argv = [sys.executable, "-m", "prologue", "presets", "--json", str(tmp_path / "τ.json")]
    done = subprocess.run(argv, env=surrounding, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "τ.json").read_text())["records"]


def test_file_names_that_are_not_unicode_can_be_told() -> None:
    assert file_name(3, os.fsdecode(b"caf\xe9"), 0) == "00003_caf_seed0.png"


def test_text_files_escape_what_is_not_unicode(tmp_path: Path) -> None:
    files.write_text(tmp_path / "page.html", f"τ {os.fsdecode(bytes([0xE9]))}")
    assert (tmp_path / "page.html").read_bytes() == "τ \\udce9".encode()


def test_json_goes_through_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "far" / "real.json")
    assert main(["presets", "--json", str(tmp_path / "link.json")]) == 0
    assert (tmp_path / "link.json").is_symlink()
    expected = json.loads((tmp_path / "far" / "real.json").read_text())["records"]
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "fifo").read_text)
        assert main(["presets", "--json", str(tmp_path / "fifo")]) == 0
        assert json.loads(read.result(10))["records"] == expected
    assert (tmp_path / "fifo").is_fifo()


def test_with_json_on_standard_output_nothing_else_is_there(tmp_path: Path) -> None:
    for place in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        if not Path(place).exists():
            continue
        argv = [sys.executable, "-m", "prologue", "presets", "--json", place]
        with (tmp_path / "log").open("w") as log:
            log.write("before\n")
            log.flush()
            done = subprocess.run(argv, stdout=log, stderr=subprocess.PIPE, text=True, check=True)
        first, _, rest = (tmp_path / "log").read_text().partition("\n")
        assert first == "before"
        assert json.loads(rest)["records"]
        assert "small-32" in done.stderr
    command = (
        f"{shlex.quote(sys.executable)} -m prologue presets small-32 --json >(cat > {tmp_path / 'copy'}) && wait $!"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads((tmp_path / "copy").read_text())["records"][0]["name"] == "small-32"
    assert "tokenizer" in json.loads(done.stdout)


def test_an_output_that_cannot_be_written_is_refused_first_or_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path, "is a folder: name a file in it"),
        (tmp_path / "file" / "a.json", f"cannot be written: {tmp_path / 'file'} is a file, not a folder"),
    ):
        assert main(["presets", "--json", str(place)]) == 2
        assert capsys.readouterr() == ("", f"error: {place} {why}\n")
    if Path("/dev/full").exists():
        assert main(["presets", "--json", "/dev/full"]) == 2
        out, err = capsys.readouterr()
        assert "small-32" in out
        assert (
            err
            == "error: --json /dev/full cannot be written (No space left on device); the figures are printed above\n"
        )


def test_a_home_folder_is_known_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train = parse(TrainOptions, ["--data=~/imgs", "--out=~/runs/x", "--tokenizer", "~/t"], "prologue", "")
    assert (train.data, train.out, train.tokenizer) == (str(tmp_path / "imgs"), tmp_path / "runs" / "x", tmp_path / "t")
    drawn = parse(GenerateOptions, ["~/run", "--out", "~/o", "--json=~/j", "--classes", "~a"], "prologue", "")
    assert (drawn.run, drawn.out, drawn.json) == (str(tmp_path / "run"), tmp_path / "o", tmp_path / "j")
    assert drawn.classes == "~a"
    assert parse(ReportOptions, ["~/a", "b"], "prologue", "").runs == (tmp_path / "a", Path("b"))
    (tmp_path / "config.json").write_text('{"tokenizer_training": {"perceptual_path": "~/weights"}}')
    given = {"tokenizer_training": {"perceptual_path": "~/weights"}}
    for file, fields in ((tmp_path / "config.json", {}), (None, given)):
        config = resolve_run_config("small-32", file, fields)
        assert config.tokenizer_training.perceptual_path == str(tmp_path / "weights")


def test_every_option_with_a_path_is_known_as_one() -> None:
    """Text options that name places carry the mark; so do those that name files to write."""
    kinds = _options_of_all_commands()
    assert len(kinds) >= len(list(COMMANDS)) + len(list(KINDS)) - 1
    places = outputs = 0
    for kind in kinds:
        hints = typing.get_type_hints(kind, include_extras=True)
        for name, hint in hints.items():
            marks = getattr(hint, "__metadata__", ())
            metavar = next((mark.metavar for mark in marks if hasattr(mark, "metavar")), None) or ""
            bare = typing.get_type_hints(kind)[name]
            if metavar in ("RUN", "WHERE") and bare in (str, str | None):
                assert LOCATION in marks, (kind, name)
                places += 1
            if (name in ("json", "samples_npz") or (name == "out" and re.match("FILE", metavar))) and bare is not bool:
                assert OUTPUT_FILE in marks, (kind, name)
                outputs += 1
    assert places >= 10
    assert outputs >= 15


def test_commands_to_copy_quote_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "my run"
    (made / "prior").mkdir(parents=True)
    (made / "prior" / "model.safetensors").touch()
    finished = types.SimpleNamespace(path=made, prior_folder=made / "prior", config=preset("shapes-smoke"))
    monkeypatch.setattr("prologue.cli.train.train", lambda *_: finished)
    assert main(["train", "--preset", "shapes-smoke", "--data", "shapes", "--out", str(made), "--device", "cpu"]) == 0
    assert f"Next: prologue generate '{made}' --out samples" in capsys.readouterr().err
    record = {"file": "my ref.npz", "n": 4, "images": 4, "split": "train"}
    assert any("--reference 'my ref.npz'" in sentence for sentence in named_kind("reference").sentences(record))
