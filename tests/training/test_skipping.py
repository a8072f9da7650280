"""Updates that are skipped for gradients that are not finite: counted, said, and the end of a hopeless training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prologue.cli.main import main
from prologue.errors import RunError, TrainingError
from prologue.training.adversary import Adversary
from prologue.training.checkpoint import Checkpoints
from prologue.training.learner import Learner
from prologue.training.loop import Stopped
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, module: str, updates: range) -> None:
    """Make the gradients of these updates of a network NaN; `module` is its class, as both stages have a prior."""
    update = Learner.update

    def spoiled(self: Learner, weight: float = 1.0) -> Tensor:
        if self.name == name and type(self.module).__name__ == module and self.updates in updates:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.nan)
        return update(self, weight)

    monkeypatch.setattr(Learner, "update", spoiled)


def steps_of(out: Path, stage: str) -> list[int]:
    return Checkpoints(out / "checkpoints" / stage, 9).steps()


def test_skipped_updates_are_said_and_their_number_stands_in_run_json(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = kit.Heard()
    with monkeypatch.context() as patch:
        spoil(patch, "discriminator", "PatchDiscriminator", range(1, 6))
        run = kit.run_training(tmp_path / "run", kit.tiny_config(), heard, stage="tokenizer")
    assert run.record["stages"]["tokenizer"]["skipped"] == 5
    assert [sentence for sentence in heard.said if "skipped" in sentence] == [
        "tokenizer: 2 updates were skipped up to step 9, the last 2 of tokenizer_training.discriminator in a row, "
        "because their gradients were not finite",
        "tokenizer: 5 updates were skipped up to step 12, the last 5 of tokenizer_training.discriminator in a row, "
        "because their gradients were not finite",
        "tokenizer: 5 updates were skipped in all, because their gradients were not finite",
    ]
    logged = {record["step"]: (record["skipped"], record["skipped_in_a_row"]) for record in run.metrics("tokenizer")}
    assert (logged[6], logged[9], logged[12], logged[15], logged[20]) == ((0, 0), (2, 2), (5, 5), (5, 0), (5, 0))
    heard = kit.Heard()
    kit.run_training(tmp_path / "run", kit.tiny_config(), heard, stage="tokenizer")
    assert heard.said[-1] == "tokenizer: 5 updates were skipped in all, because their gradients were not finite"


CASES = [
    ("tokenizer", "tokenizer", "Tokenizer", "tokenizer-training.autoencoder", 0),
    ("tokenizer", "prior", "Prior", "tokenizer-training.prior", 0),
    ("tokenizer", "discriminator", "PatchDiscriminator", "tokenizer-training.discriminator", 6),
    ("prior", "prior", "Prior", "prior-training.optimizer", 0),
]


@pytest.mark.parametrize(("stage", "name", "module", "flag", "first"), CASES)
def test_training_stops_and_keeps_the_last_state_before(
    stage: str, name: str, module: str, flag: str, first: int,
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Checkpoints of the stretch, two of which would fill the places, neither replace it nor are continued from."""
    out, config = tmp_path / "run", replace(kit.tiny_config(), stop_after_skipped=6, checkpoint_every=2, log_every=20)
    if stage == "prior":
        kit.run_training(out, config, stage="tokenizer")
        kit.run_training(out, config, stage="tokens")
    with monkeypatch.context() as patch:
        spoil(patch, name, module, range(9 - first, 99))
        with pytest.raises(TrainingError) as caught:
            kit.run_training(out, config, stage=stage)
    text = str(caught.value)
    assert f"{stage}: training stopped after step 16, because the gradients of the last 7 updates" in text
    assert "the state after step 8 is kept" in text
    for remedy in (f"--{flag}.lr 0.0001", f"--{flag}.clip 1", "--precision fp32"):
        assert remedy in text
    assert steps_of(out, stage)[-1] == 8
    known = RunFolder.load(out).record["stages"][stage]
    assert (known["skipped"], known["failed"], known["finished"]) == (7, True, False)
    kit.run_training(out, config)  # what made them is gone, so the bits are those of a run that nothing disturbed
    assert kit.hashes(out) == kit.hashes(uninterrupted)


def test_a_stop_during_the_stretch_costs_neither_state(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "run", replace(kit.tiny_config(), stop_after_skipped=6, keep_checkpoints=1)
    spoil(monkeypatch, "tokenizer", "Tokenizer", range(8, 99))
    with pytest.raises(Stopped):
        kit.run_training(out, config, kit.StopAt("tokenizer", 11))
    assert steps_of(out, "tokenizer") == [5, 11]  # 10 made room
    with pytest.raises(
        TrainingError, match=r"after step 15, because the gradients of the last 7 .* after step 5 is kept"
    ):
        kit.run_training(out, config)
    assert steps_of(out, "tokenizer") == [5]


def test_the_remedies_can_be_followed_and_nothing_else_changes(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate so high that the update before the first skipped one has spoiled the weights already."""
    out, config = tmp_path / "run", replace(kit.tiny_config(), stop_after_skipped=5, checkpoint_every=2)
    rates = config.tokenizer_training.autoencoder
    high = replace(config, tokenizer_training=replace(config.tokenizer_training, autoencoder=replace(rates, lr=1e30)))
    low = replace(config, tokenizer_training=replace(config.tokenizer_training, autoencoder=replace(rates, lr=1e-4)))
    with pytest.raises(TrainingError, match="the state after step 2 is kept"):
        kit.run_training(out, high)
    with pytest.raises(RunError, match=r"\n  tokenizer_training\.l1: 1\.0 in the run, 2\.0 now\nRepeat the settings"):
        kit.run_training(out, replace(low, tokenizer_training=replace(low.tokenizer_training, l1=2.0)))
    with pytest.raises(TrainingError, match="there is no earlier state, so it starts again"):
        kit.run_training(out, low)  # nothing could be updated since step 2, so that state is of no use either
    assert steps_of(out, "tokenizer") == []
    heard = kit.Heard()
    run = kit.run_training(out, low, heard)
    assert run.finished("prior")
    assert run.record["changes"][0]["fields"] == {"tokenizer_training.autoencoder.lr": [1e30, 1e-4]}
    assert RunFolder.load(out).config.tokenizer_training == low.tokenizer_training
    with pytest.raises(RunError, match=r"autoencoder\.lr"):  # what is mended is settled again
        kit.run_training(out, config)


def test_zero_never_stops(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "tokenizer", "Tokenizer", range(2, 99))
    run = kit.run_training(tmp_path / "run", replace(kit.tiny_config(), stop_after_skipped=0), stage="tokenizer")
    assert run.record["stages"]["tokenizer"]["skipped"] == 18


def test_a_checkpoint_of_an_earlier_version_has_no_count_in_a_row(context: Callable[..., Any]) -> None:
    learner = Adversary(context()).learner
    state = {key: value for key, value in learner.state().items() if not key.endswith("in_a_row")}
    state["discriminator.counts"] = torch.tensor([7, 2])
    learner.load_state(state)
    assert (learner.updates, learner.skips.tolist()) == (7, [2, 0])


def test_the_command_says_it_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = {"width": 16, "depth": 1, "heads": 2}
    rates = {"lr": 1e30, "warmup": 1}
    config = {
        "data": {"shapes_images": 8, "shapes_validation": 8},
        "tokenizer": {"variant": "2d", "prologue_tokens": 0, "image_size": [8, 8], "patch_size": 4, "encoder": stack,
                      "decoder": stack, "codebook_size": 8},
        "tokenizer_training": {"steps": 30, "batch": 2, "autoencoder": rates, "prior_model": stack, "gan": 0,
                               "perceptual": "none", "prologue_kmeans": []},
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(config))
    argv = ["train", "--preset", "shapes-smoke", "--config", str(tmp_path / "c.json"), "--data", "shapes", "--device",
            "cpu", "--out", str(tmp_path / "run"), "--stop-after-skipped", "10"]  # fmt: skip
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "error: tokenizer: training stopped after step 20" in said
    assert "Traceback" not in said
