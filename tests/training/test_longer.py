"""Runs that continue to more steps than they were started with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from prologue.config import RunConfig
from prologue.errors import RunError
from prologue.models.weights import file_hash
from prologue.sampling.manifest import NAME, Manifest
from prologue.sampling.recipe import Recipe
from prologue.training.loop import Stopped
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow


def longer(config: RunConfig, tokenizer: int = 20, prior: int = 20) -> RunConfig:
    return replace(
        config,
        tokenizer_training=replace(config.tokenizer_training, steps=tokenizer),
        prior_training=replace(config.prior_training, steps=prior),
    )


def test_a_longer_run_has_to_be_asked_for(kit: SimpleNamespace, uninterrupted: Path) -> None:
    before = (uninterrupted / "run.json").read_bytes()
    with pytest.raises(RunError, match=r"prior_training\.steps: 20 in the run, 26 now\nAdd --extend to train it for"):
        kit.run_training(uninterrupted, longer(kit.tiny_config(), prior=26))
    with pytest.raises(RunError, match=r"prior_training\.steps: 20 in the run, 9 now\nRepeat the settings"):
        kit.run_training(uninterrupted, longer(kit.tiny_config(), prior=9), extend=True)
    with pytest.raises(RunError, match=r"raise --prior-training\.steps too"):
        kit.run_training(uninterrupted, longer(kit.tiny_config(), tokenizer=26), extend=True)
    assert (uninterrupted / "run.json").read_bytes() == before


def test_a_finished_prior_goes_on_where_it_was(kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path) -> None:
    """Its bits are those of a prior that was stopped there, and whose steps were raised then."""
    out, stopped = tmp_path / "run", tmp_path / "stopped"
    shutil.copytree(uninterrupted, out)
    config, heard = longer(kit.tiny_config(), prior=26), kit.Heard()
    run = kit.run_training(out, config, heard, extend=True)
    assert heard.said[1:3] == ["tokenizer: finished already", "tokens: finished already"]
    assert heard.said[3] == "prior: continuing at step 20 of 26"
    assert heard.said[4].startswith("prior: settings have changed; the learning rate is now 0.0")
    assert run.record["changes"] == [
        {"at": {"tokenizer": 20, "tokens": 0, "prior": 20}, "fields": {"prior_training.steps": [20, 26]}}
    ]
    assert [record["step"] for record in run.metrics("prior")][-3:] == [21, 24, 26]
    assert file_hash(out / "prior" / "model.safetensors") != file_hash(uninterrupted / "prior" / "model.safetensors")
    again = kit.Heard()
    kit.run_training(out, config, again)  # from now on these are its settings
    assert again.said[1:] == [f"{stage}: finished already" for stage in ("tokenizer", "tokens", "prior")]
    shutil.copytree(uninterrupted, stopped)
    RunFolder.load(stopped).set_stage("prior", finished=False)
    kit.run_training(stopped, config, extend=True)
    assert kit.hashes(stopped) == kit.hashes(out)


def test_a_run_of_an_earlier_version_goes_on_from_its_weights(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path
) -> None:
    """Those versions removed the checkpoints of a finished stage."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(RunError, match="holds no checkpoint of its finished stage 'tokenizer'"):
        kit.run_training(out, longer(kit.tiny_config(), 26, 26), extend=True)
    heard = kit.Heard()
    with pytest.raises(Stopped):
        kit.run_training(out, longer(kit.tiny_config(), prior=30), kit.StopAt("prior", 23), extend=True)
    run = kit.run_training(out, longer(kit.tiny_config(), prior=30), heard)
    assert heard.said[3] == "prior: continuing at step 23 of 30"
    assert run.finished("prior")


def test_a_longer_tokenizer_takes_its_tokens_and_its_prior_along(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path
) -> None:
    """While the prior does not know the new tokens, the folder is not one to sample from; its recipe is kept."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    Manifest.load(out).replace(recipe=Recipe(temperature=0.8)).save(out)
    config = longer(kit.tiny_config(), 24, 24)
    with pytest.raises(Stopped):
        kit.run_training(out, config, kit.StopAt("prior", 22), extend=True)
    assert not (out / NAME).exists()
    kit.run_training(out, config)
    assert Manifest.load(out).recipe == Recipe(temperature=0.8)
    assert not list(out.glob("*.aside"))
    before, after = kit.hashes(uninterrupted), kit.hashes(out)
    assert [name for name in before if before[name] == after[name]] == ["tokenizer/config.json", "prior/config.json"]
