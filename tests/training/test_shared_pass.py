"""One pass through the stage-1 prior for both updates gives what two passes give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prologue.config import PriorOptions, RunConfig, TokenizerTraining
from prologue.data.source import open_data
from prologue.errors import ConfigError
from prologue.presets import small
from prologue.training.context import Context
from prologue.training.run import RunFolder
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.training.train import make_accelerator


def config(shared: bool, visual_dropout: float) -> RunConfig:
    base = small(
        image_size=16, width=32, depth=1, prior_width=32, codebook_size=16, prologue_tokens=2,
        prologue_codebook_size=8, tokenizer_steps=20, batch=4, shapes_images=16, shapes_validation=8,
    )  # fmt: skip
    training = dataclasses.replace(
        base.tokenizer_training, shared_prior_pass=shared, visual_dropout=visual_dropout, prologue_kmeans=()
    )
    return dataclasses.replace(base, tokenizer_training=training)


def weights_after(folder: Path, steps: int, **options: object) -> dict[str, Tensor]:
    chosen = config(**options)  # type: ignore[arg-type]
    data = open_data("shapes", chosen.data, chosen.tokenizer.image_size)
    stage = TokenizerStage(Context(RunFolder.open(folder, chosen, {}), data, make_accelerator("fp32", "cpu")))
    metrics = [stage.step(step) for step in range(steps)][-1]
    assert {"ce_prologue", "ce_eos", "ce_visual", "prior_gradient_norm"} <= metrics.keys()
    # Adam hides a wrong scale of the gradients; their norm does not.
    norm = torch.as_tensor(metrics["prior_gradient_norm"])
    return {key: value for key, value in stage.state().items() if ".model." in key} | {"norm": norm}


@pytest.mark.parametrize("visual_dropout", [0.0, 1.0])
def test_same_updates_where_the_draws_agree(tmp_path: Path, visual_dropout: float) -> None:
    apart = weights_after(tmp_path / "apart", 6, shared=False, visual_dropout=visual_dropout)
    shared = weights_after(tmp_path / "shared", 6, shared=True, visual_dropout=visual_dropout)
    start = weights_after(tmp_path / "start", 1, shared=True, visual_dropout=visual_dropout)
    for key, value in apart.items():
        torch.testing.assert_close(shared[key], value, atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    moved = [key for key in apart if key.startswith("prior.") and not torch.equal(start[key], apart[key])]
    assert len(moved) > 5


def test_needs_equal_weights_and_no_dropout() -> None:
    with pytest.raises(ConfigError, match="ce_prologue equal to ce_visual"):
        TokenizerTraining(shared_prior_pass=True, ce_prologue=1.0)
    with pytest.raises(ConfigError, match="without dropout"):
        TokenizerTraining(shared_prior_pass=True, prior_model=PriorOptions(dropout=0.1))
