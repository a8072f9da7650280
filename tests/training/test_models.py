"""A run that is still training is sampled and measured with the EMA of its newest checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prologue.cli.main import main
from prologue.errors import CheckpointError
from prologue.models.weights import read_tensors
from prologue.pipeline import Pipeline
from prologue.training.checkpoint import Checkpoints
from prologue.training.loop import Stopped
from prologue.training.models import RunModels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def training(kit: SimpleNamespace, uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prior has done 13 steps."""
    out = tmp_path_factory.mktemp("training") / "run"
    with pytest.raises(Stopped):
        kit.run_training(out, kit.tiny_config(), kit.StopAt("prior", 13))
    return out


def ema(run: Path, stage: str, step: int, name: str) -> dict[str, torch.Tensor]:
    tensors = read_tensors(run / "checkpoints" / stage / f"step-{step:08d}" / "state.safetensors", (f"{name}.ema.",))
    return {key.removeprefix(f"{name}.ema."): value for key, value in tensors.items()}


def test_samples_of_a_prior_in_training(training: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no pipeline\.json, so it is not a finished run"):
        Pipeline.from_pretrained(training, "cpu")
    pipe = Pipeline.from_pretrained(training, "cpu", "fp32", checkpoint="newest")
    expected = ema(training, "prior", 13, "prior")
    assert all(torch.equal(value, expected[key]) for key, value in pipe.prior.state_dict().items())
    argv = ["generate", str(training), "--checkpoint", "newest", "--count", "2", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "g.json")]) == 0
    origin = json.loads((tmp_path / "g.json").read_text())["provenance"]
    assert origin["checkpoint"] == {"prior": {"stage": "prior", "step": 13}}
    (image,) = sorted((tmp_path / "out").glob("00000*.png"))
    argv = ["resample", str(training), str(image), "--checkpoint", "newest", "--count", "1", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "more"), "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["provenance"]["checkpoint"]["prior"]["step"] == 13
    argv = ["evaluate", "likelihood", str(training), "--checkpoint", "newest", "--device", "cpu"]
    assert main([*argv, "--json", str(tmp_path / "l.json")]) == 0
    assert json.loads((tmp_path / "l.json").read_text())["provenance"]["checkpoint"]["prior"]["step"] == 13


def test_a_run_without_a_prior_yet(
    kit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        kit.run_training(out, kit.tiny_config(), kit.StopAt("tokenizer", 9))
    with pytest.raises(CheckpointError, match=r"no prior for its tokens yet, .* stage 'tokenizer' \(step 9 of 20\)"):
        Pipeline.from_pretrained(out, "cpu", "fp32", checkpoint="newest")
    argv = ["evaluate", "reconstruction", str(out), "--device", "cpu", "--features", "shapes"]
    assert main([*argv, "--checkpoint", "newest", "--json", str(tmp_path / "r.json")]) == 0
    origin = json.loads((tmp_path / "r.json").read_text())["provenance"]
    assert origin["checkpoint"] == {"tokenizer": {"stage": "tokenizer", "step": 9}}
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        RunModels.open(out, "newest")


def test_a_one_stage_run_ships_the_prior_of_its_only_stage(kit: SimpleNamespace, tmp_path: Path) -> None:
    config = kit.tiny_config(one_stage=True, label_drop=0.1)
    with pytest.raises(Stopped):
        kit.run_training(tmp_path / "run", config, kit.StopAt("tokenizer", 12))
    pipe = Pipeline.from_pretrained(tmp_path / "run", "cpu", "fp32", checkpoint="newest")
    expected = ema(tmp_path / "run", "tokenizer", 12, "prior")
    assert all(torch.equal(value, expected[key]) for key, value in pipe.prior.state_dict().items())
    assert len(pipe.generate(count=1).images) == 1


def test_newest_of_a_finished_run_is_what_it_ships(uninterrupted: Path) -> None:
    assert RunModels.open(uninterrupted, "newest").facts == {}


def test_reading_while_a_training_replaces_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kit: SimpleNamespace
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, {"a.x": torch.tensor([5]), "b.x": torch.tensor([0])})
    read, left = Checkpoints._read, [10, 15]

    def raced(self: Checkpoints, step: int, only: tuple[str, ...] = ("",)) -> dict[str, torch.Tensor]:
        if left:
            checkpoints.save(left.pop(0), {"a.x": torch.tensor([15]), "b.x": torch.tensor([0])})
        return read(self, step, only)

    monkeypatch.setattr(Checkpoints, "_read", raced)
    found = checkpoints.newest(("a.",))
    assert found is not None
    step, digest, tensors = found
    assert (step, list(tensors), len(digest)) == (15, ["a.x"], 64)
    (tmp_path / "step-00000015" / "state.safetensors").write_bytes(b"")
    assert checkpoints.newest(("a.",)) is None
