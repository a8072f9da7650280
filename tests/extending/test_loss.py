"""The recipe of docs/extending.md for a loss term."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prologue.cli.main import main
from prologue.errors import ConfigError
from prologue.training.losses import Weighted, weighted_sum
from prologue.training.run import RunFolder
from prologue.training.schedule import Ramp

pytestmark = pytest.mark.slow

EDGES = {"name": "my_losses:edges", "weight": 0.5, "start": 2, "length": 3, "power": 2}
TINY = (
    "--preset shapes-smoke --data shapes --device cpu --data.shapes-images 20 --data.shapes-validation 4 "
    "--tokenizer-training.steps 6 --tokenizer-training.batch 4 --prior-training.steps 3 --prior-training.batch 4 "
    "--log-every 1"
)


def train(out: Path, *flags: str, before: tuple[str, ...] = ()) -> int:
    return main([*before, "train", "--out", str(out), *TINY.split(), *flags])


def test_a_loss_term_of_ones_own(tmp_path: Path, outside_module: Callable[[str], None]) -> None:
    out, flags = tmp_path / "run", ("--tokenizer-training.losses", json.dumps(EDGES))
    outside_module("my_losses")
    assert train(out, *flags) == 0
    assert train(out, *flags) == 0  # a finished run with the same settings
    run = RunFolder.load(out)
    assert run.config.tokenizer_training.losses == (EDGES,)
    records = run.metrics("tokenizer")
    assert ["edges" in record for record in records] == [False, False, True, True, True, True]
    outside_module("my_losses")  # a new process has not imported it
    assert main(["generate", str(out), "--count", "2", "--device", "cpu", "--out", str(out / "drawn")]) == 0


def test_it_trains(tmp_path: Path, outside_module: Callable[[str], None]) -> None:
    """The term changes the weights from its first step on, which is step 3."""
    outside_module("my_losses")
    weights = []
    for weight in (0.0, 2.0):
        out, edges = tmp_path / str(weight), EDGES | {"weight": weight}
        assert train(out, "--stage", "tokenizer", "--tokenizer-training.losses", json.dumps(edges)) == 0
        weights.append([record["l1"] for record in RunFolder.load(out).metrics("tokenizer")])
    assert weights[0][:3] == weights[1][:3]
    assert weights[0][3:] != weights[1][3:]


def test_a_term_that_is_no_scalar_is_named() -> None:
    outputs = SimpleNamespace(step=0, device="cpu")
    for value, shown in ((torch.ones(3), r"a tensor of shape \(3,\)"), (1.0, "float")):
        with pytest.raises(ConfigError, match=f"the loss term 'own' returned {shown}: return a scalar"):
            weighted_sum([Weighted("own", lambda outputs, value=value: value, Ramp(1.0))], outputs)  # type: ignore[arg-type]


def test_a_file_imports_nothing(
    tmp_path: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_losses")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"tokenizer_training": {"losses": [EDGES]}}), encoding="utf-8")
    flags = ("--stage", "tokenizer", "--config", str(file))
    assert train(tmp_path / "run", *flags) == 2
    assert "prologue --import my_losses" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()
    assert train(tmp_path / "run", *flags, before=("--import", "my_losses")) == 0
