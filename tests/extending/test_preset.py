"""The recipe of docs/extending.md for a preset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prologue import presets
from prologue.cli._overrides import resolve_run_config
from prologue.cli.main import main
from prologue.errors import ConfigError
from prologue.training.run import RunFolder

NAME = "my_presets:icons"


@pytest.mark.slow
def test_a_run_of_ones_own_preset(tmp_path: Path, outside_module: Callable[[str], None]) -> None:
    outside_module("my_presets")
    out = tmp_path / "run"
    few = (
        "--data shapes --device cpu --data.shapes-images 16 --data.shapes-validation 4 --prior-training.steps 2 "
        "--tokenizer-training.steps 3 --tokenizer-training.prologue-kmeans none"
    )
    assert main(["train", "--preset", NAME, "--out", str(out), *few.split()]) == 0
    assert RunFolder.load(out).config.tokenizer.image_size == (24, 24)
    outside_module("my_presets")  # a new process has not imported it
    assert main(["generate", str(out), "--count", "1", "--device", "cpu", "--out", str(tmp_path / "drawn")]) == 0


def test_it_is_listed_printed_and_explained(
    outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_presets")
    assert main(["presets", NAME]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"]["codebook_size"] == 64
    outside_module("my_presets")
    assert main(["presets"]) == 0
    assert "my_presets" not in capsys.readouterr().out
    assert main(["--import", "my_presets", "presets"]) == 0
    assert "icons of 24 px in few colours" in " ".join(capsys.readouterr().out.split())
    assert main(["train", "--preset", NAME, "--help"]) == 0
    assert "Number of visual codes, K. (default: 64)" in capsys.readouterr().out


def test_presets_that_are_none(outside_module: Callable[[str], None]) -> None:
    outside_module("my_presets")
    with pytest.raises(ConfigError, match="--import my_presets"):
        presets.preset(NAME)
    with pytest.raises(ConfigError, match="'my_presets:none' cannot be imported"):
        resolve_run_config("my_presets:none", None, {})
    with pytest.raises(ConfigError, match="must return a RunConfig, not OrderedDict"):
        resolve_run_config("collections:OrderedDict", None, {})
