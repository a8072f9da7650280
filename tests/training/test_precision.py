"""`precision: auto` is decided once, when a run begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from prologue.models.precision import pick_precision
from prologue.presets import small
from prologue.training import train as training
from prologue.training.progress import Progress
from prologue.training.run import RunFolder
from prologue.training.train import TrainRequest, train


@pytest.mark.parametrize(("probed", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, probed: bool, expected: str) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: probed, raising=False)
    assert pick_precision("auto", torch.device("cpu")) == expected
    assert pick_precision("fp32", torch.device("cpu")) == "fp32"
    assert pick_precision("auto", torch.device("mps")) == "fp32"


def test_a_run_keeps_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(
        image_size=16, width=32, depth=1, prior_width=32, prior_depth=1, codebook_size=16, prologue_tokens=2,
        prologue_codebook_size=8, tokenizer_steps=2, prior_steps=2, batch=4, shapes_images=16, shapes_validation=8,
    )  # fmt: skip
    request = TrainRequest(dataclasses.replace(config, precision="auto", sample_every=0), "shapes", tmp_path / "run")
    monkeypatch.setattr(training, "pick_precision", lambda precision, device: "bf16")
    train(dataclasses.replace(request, stage="tokenizer"), Progress())
    monkeypatch.setattr(training, "pick_precision", lambda precision, device: "fp32")
    train(request, Progress())  # begun elsewhere, continued here: no other settings
    assert RunFolder.load(tmp_path / "run").config.precision == "bf16"
