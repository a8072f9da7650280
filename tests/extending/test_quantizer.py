"""The recipe of docs/extending.md for a quantizer, and the same for the package's quantizer without a codebook."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prologue import Pipeline
from prologue.cli.main import main
from prologue.errors import ConfigError
from prologue.models.tokenizer import Tokenizer
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow

SIGNS = {"name": "my_quantizer:Signs", "commitment": 0.1}


def train(out: Path, *flags: str) -> int:
    """A run of a few steps, with the upkeep of codebooks in its first steps."""
    tiny = (
        "--preset shapes-smoke --data shapes --device cpu --data.shapes-images 20 --data.shapes-validation 4 "
        "--tokenizer-training.steps 6 --tokenizer-training.batch 4 --tokenizer-training.dead-code-reset-every 2 "
        "--tokenizer-training.prologue-kmeans 2 --prior-training.steps 3 --prior-training.batch 4 "
        "--sample-every 3 --checkpoint-every 3"
    )
    return main(["train", "--out", str(out), *tiny.split(), *flags])


def generate(out: Path, *before: str) -> int:
    return main([*before, "generate", str(out), "--count", "2", "--device", "cpu", "--out", str(out / "drawn")])


def test_fsq_trains_is_saved_and_draws(tmp_path: Path) -> None:
    out, fsq = tmp_path / "run", {"name": "fsq", "levels": [5, 5, 5]}
    flags = ("--tokenizer.quantizer", json.dumps(fsq), "--tokenizer.code-dim", "3", "--tokenizer.codebook-size", "125")
    assert train(out, *flags) == 0
    assert train(out, *flags) == 0  # a finished run with the same settings
    assert generate(out) == 0
    assert len(list((out / "drawn").glob("*.png"))) >= 2
    assert RunFolder.load(out).config.tokenizer.quantizer == fsq
    assert Pipeline.from_pretrained(out, device="cpu").tokenizer.config.quantizer == fsq
    losses = [record["l1"] for record in RunFolder.load(out).metrics("tokenizer")]
    assert all(loss == loss for loss in losses)


def test_a_quantizer_of_ones_own(
    tmp_path: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ("--tokenizer.code-dim", "5", "--tokenizer.codebook-size", "32")
    outside_module("my_quantizer")
    assert train(out, *flags, "--tokenizer.quantizer", json.dumps(SIGNS)) == 0
    assert "Next: prologue --import my_quantizer generate " in capsys.readouterr().err
    assert json.loads((out / "tokenizer" / "config.json").read_text())["quantizer"] == SIGNS
    outside_module("my_quantizer")  # a new process has not imported it
    with pytest.raises(ConfigError, match="--import my_quantizer"):
        Tokenizer.from_pretrained(out / "tokenizer")
    assert generate(out) == 2
    assert "prologue --import my_quantizer" in capsys.readouterr().err
    assert generate(out, "--import", "my_quantizer") == 0


@pytest.mark.usefixtures("outside_module")
def test_several_ids_for_each_position(tmp_path: Path) -> None:
    out, residual = tmp_path / "run", {"name": "tests.models.quantizers.residual:Residual", "ids_per_position": 2}
    flags = ("--tokenizer.quantizer", json.dumps(residual), "--tokenizer.prologue-quantizer", json.dumps(residual))
    assert train(out, *flags) == 0
    pipe = Pipeline.from_pretrained(out, device="cpu")
    tokens = pipe.generate(count=2).tokens
    assert (tokens.visual.shape, tokens.prologue.shape) == ((2, 2 * 64), (2, 4))
    assert pipe.prior.layout.length == 4 + 1 + 2 * 64


def test_a_file_imports_nothing(tmp_path: Path, outside_module: Callable[[str], None]) -> None:
    """A name in a `--config` file is not typed: the file may come from somebody else."""
    outside_module("my_quantizer")
    file = tmp_path / "config.json"
    tokenizer = {"quantizer": SIGNS, "code_dim": 5, "codebook_size": 32}
    file.write_text(json.dumps({"tokenizer": tokenizer}), encoding="utf-8")
    assert train(tmp_path / "refused", "--config", str(file)) == 2
    assert train(tmp_path / "run", "--config", str(file), "--tokenizer.quantizer", "my_quantizer:Signs") == 0
    config = RunFolder.load(tmp_path / "run").config.tokenizer
    assert config.quantizer == {"name": "my_quantizer:Signs"}  # the file's options go with its component
