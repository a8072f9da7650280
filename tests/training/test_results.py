"""A finished run is not written to; and a stage counts as finished while what it left is there and whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from prologue.errors import RunError
from prologue.evaluation.runs import RunInfo
from prologue.sampling.manifest import Manifest
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def copy(uninterrupted: Path, tmp_path: Path) -> Path:
    shutil.copytree(uninterrupted, tmp_path / "run")
    return tmp_path / "run"


def damage(run: Path, how: str) -> None:
    shard = run / "tokens" / "shard-00000.bin"
    if how == "deleted":
        shutil.rmtree(run / "tokens")
    elif how == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    else:
        (run / "tokens" / {"index": "index.json", "shard": shard.name}[how]).unlink()


DAMAGES = ["deleted", "truncated", "index", "shard"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_lost_token_store_is_made_again_where_it_is_needed(
    how: str, kit: SimpleNamespace, uninterrupted: Path, copy: Path
) -> None:
    damage(copy, how)
    before, heard = everything(copy), kit.Heard()
    kit.run_training(copy, kit.tiny_config(), heard)  # a finished prior does not need it
    assert everything(copy) == before
    assert "tokens: finished already; the finished prior does not need its damaged store" in heard.said[2]
    kit.run_training(copy, kit.tiny_config(), heard, stage="tokens")
    assert kit.hashes(copy) == kit.hashes(uninterrupted)
    RunFolder.load(copy).set_stage("prior", finished=False)
    for stage in ("prior", "all"):
        damage(copy, how)
        kit.run_training(copy, kit.tiny_config(), heard, stage=stage)
        assert kit.hashes(copy) == kit.hashes(uninterrupted)
        RunFolder.load(copy).set_stage("prior", finished=False)


@pytest.mark.parametrize("part", ["tokenizer", "prior"])
def test_a_lost_model_is_made_again_from_its_checkpoint(
    part: str, kit: SimpleNamespace, uninterrupted: Path, copy: Path
) -> None:
    heard = kit.Heard()
    weights = copy / part / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    kit.run_training(copy, kit.tiny_config(), heard)
    (said,) = [sentence for sentence in heard.said if "is lost" in sentence]
    assert said.startswith(f"{part}: its result is lost and is computed from its checkpoint of step 20")
    assert str(weights) in said
    assert kit.hashes(copy) == kit.hashes(uninterrupted)
    shutil.rmtree(copy / part)
    shutil.rmtree(copy / "checkpoints" / part)
    kit.run_training(copy, kit.tiny_config(), heard)
    assert "is lost and is computed again" in [sentence for sentence in heard.said if "is lost" in sentence][1]
    assert kit.hashes(copy) == kit.hashes(uninterrupted)


def test_what_was_made_with_another_tokenizer_is_not_finished(
    kit: SimpleNamespace, uninterrupted: Path, copy: Path, tmp_path: Path
) -> None:
    """As where a lost tokenizer is trained again on a machine that rounds otherwise."""
    other = kit.run_training(tmp_path / "other", kit.tiny_config(l1=2.0), stage="tokenizer")
    shutil.copytree(other.tokenizer_folder, copy / "tokenizer", dirs_exist_ok=True)
    heard = kit.Heard()
    kit.run_training(copy, kit.tiny_config(), heard)
    assert sum("was made with another tokenizer than the one in" in sentence for sentence in heard.said) == 2
    before, after = kit.hashes(uninterrupted), kit.hashes(copy)
    assert [name for name in before if before[name] == after[name]] == ["tokenizer/config.json", "prior/config.json"]
    assert RunFolder.load(copy).metrics("prior")[0]["step"] == 3


def test_a_stage_alone_needs_what_it_reads(kit: SimpleNamespace, copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    shutil.rmtree(copy / "tokens")
    with pytest.raises(
        RunError, match=r"stage 'tokens' needs the finished stage 'tokenizer': run it first, or --stage all"
    ):
        kit.run_training(copy, kit.tiny_config(), stage="tokens")


def test_a_finished_run_is_not_written_to_from_anywhere(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.save_pictures(tmp_path / "base", 6)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = kit.run_training(Path("run"), kit.tiny_config(), data="base")
    before = everything(tmp_path / "run")
    assert str(tmp_path) not in (tmp_path / "run" / "pipeline.json").read_text()
    assert run.record["facts"]["data"] == str(tmp_path / "base")
    monkeypatch.chdir(tmp_path / "elsewhere")
    kit.run_training(Path("../run"), kit.tiny_config(), data="../base")
    assert everything(tmp_path / "run") == before
    info = RunInfo.load(tmp_path / "run")
    assert info.data_name(None) == str(tmp_path / "base")
    assert info.open_data(None, (24, 24)).own


def test_paths_of_earlier_versions_are_read_and_not_handed_on(kit: SimpleNamespace, tmp_path: Path) -> None:
    kit.save_pictures(tmp_path / "base", 3)
    old = {"class_names": [], "recipe": None, "data": str(tmp_path / "base"), "trained_on": [], "format": 1}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pipeline.json").write_text(json.dumps(old))
    info = RunInfo.load(tmp_path / "old")
    assert info.data_name(None) == str(tmp_path / "base")
    info.manifest.save(tmp_path / "new")
    assert Manifest.load(tmp_path / "new").data is None


def test_a_given_tokenizer_is_named_by_an_absolute_path(
    kit: SimpleNamespace, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(uninterrupted.parent)
    run = kit.run_training(tmp_path / "run", kit.tiny_config(), tokenizer_from=Path("run"), stage="tokenizer")
    assert run.record["stages"]["tokenizer"]["taken_from"] == str(uninterrupted)
