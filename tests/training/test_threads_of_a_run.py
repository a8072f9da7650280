"""The number of CPU threads of a stage: by the size of its work, and kept by whoever continues it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prologue.training.context import Context
from prologue.training.loop import Stopped
from prologue.training.run import RunFolder
from prologue.training.tokenizer_stage import TokenizerStage
from prologue.utils.cpu_threads import cpu_threads

pytestmark = pytest.mark.slow

BIG = (10_000, 128)


@pytest.fixture(autouse=True)
def no_number_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_a_begun_stage_keeps_its_number(context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = context()
    with cpu_threads(3):
        assert made.threads("prior", 8, 24) == 1
        assert made.threads("prior", *BIG) == 3
        made.run.set_stage("prior", steps=10, threads=2)
        assert made.threads("prior", *BIG) == 2
        made.run.set_stage("tokenizer", steps=10)  # by an earlier version
        assert made.threads("tokenizer", 8, 24) == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert made.threads("prior", *BIG) == 3


def test_a_training_uses_and_stores_it(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = TokenizerStage.step

    def watch(self: Any, number: int) -> Any:
        seen.append(torch.get_num_threads())
        return step(self, number)

    monkeypatch.setattr("prologue.training.tokenizer_stage.TokenizerStage.step", watch)
    with cpu_threads(2), pytest.raises(Stopped):
        kit.run_training(tmp_path / "run", kit.tiny_config(), kit.StopAt("tokenizer", 4))
    assert set(seen) == {1}
    run = RunFolder.load(tmp_path / "run")
    assert run.record["stages"]["tokenizer"]["threads"] == 1
    run.set_stage("tokenizer", threads=2)  # as if its work had paid for them
    seen.clear()
    kit.run_training(tmp_path / "run", kit.tiny_config(), stage="tokenizer")
    assert set(seen) == {2}
