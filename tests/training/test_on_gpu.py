"""Training on a GPU: steps queue their work and never wait for it, but where figures are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from prologue.training.prior_stage import PriorStage
from prologue.training.tokenizer_stage import TokenizerStage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EVERY = 4
"""Steps between log records, resets of dead codes and looks at held-out images: only these may wait."""
DEVICE = "cuda"


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("variant", ["prologue", "prologue-post", "2d", "1d"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_the_device(
    kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, accumulate: int
) -> None:
    config = kit.tiny_config(variant, dead_code_reset_every=EVERY, accumulate=accumulate)
    config = dataclasses.replace(
        config,
        log_every=EVERY,
        sample_every=0,
        checkpoint_every=100,
        prior_training=dataclasses.replace(config.prior_training, keep_best_every=EVERY, accumulate=accumulate),
    )
    watched: list[str] = []

    def watch(stage: type) -> Callable[..., object]:
        step = stage.step

        def watched_step(self, number: int) -> object:
            if number == 0 or (number + 1) % EVERY == 0 or number in config.tokenizer_training.prologue_kmeans:
                return step(self, number)
            with waiting_is_an_error():
                watched.append(self.name)
                return step(self, number)

        return watched_step

    request = {}
    if variant == "prologue-post":
        kit.run_training(tmp_path / "base", kit.tiny_config("2d"), device=DEVICE)
        request["tokenizer_from"] = tmp_path / "base"
    for stage in (TokenizerStage, PriorStage):
        monkeypatch.setattr(stage, "step", watch(stage))
    kit.run_training(tmp_path / "run", config, device=DEVICE, **request)
    assert set(watched) == {"tokenizer", "prior"}
    assert len(watched) > 20
