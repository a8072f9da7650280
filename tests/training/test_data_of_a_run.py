"""A run and its image files: the rule that it keeps, its own folder among the images, and files that changed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.data.pictures import fill, save

from prologue.config import RunConfig
from prologue.errors import DataError, RunError
from prologue.evaluation.runs import RunInfo
from prologue.training.run import RunFolder


@pytest.fixture
def short(kit: SimpleNamespace) -> RunConfig:
    """Two steps of each stage, with a sample grid after each."""
    config: RunConfig = kit.tiny_config()
    return dataclasses.replace(
        config,
        tokenizer_training=dataclasses.replace(config.tokenizer_training, steps=2, prologue_kmeans=(1,)),
        prior_training=dataclasses.replace(config.prior_training, steps=2),
        sample_every=1,
    )


def test_a_run_inside_its_data_continues(
    kit: SimpleNamespace, short: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "cat", "dog")
    monkeypatch.chdir(tmp_path)
    kit.run_training(Path("run"), short, data=".", stage="tokenizer")
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    heard = kit.Heard()
    run = kit.run_training(Path("run"), short, heard, data=".", stage="tokens")
    assert run.record["facts"]["class_names"] == ["cat", "dog"]
    assert heard.said[0].startswith(".: 8 images in 2 classes of 4 each, ")
    assert heard.said[0].endswith("; left out: folders written by prologue (run)")


def test_a_run_of_an_earlier_version_keeps_its_images(kit: SimpleNamespace, short: RunConfig, tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "train", "val")
    fill(data, "train", count=2, suffix=".bmp")
    first = dataclasses.replace(short, data=dataclasses.replace(short.data, file_rule=1))
    before = kit.run_training(tmp_path / "run", first, data=str(data), stage="tokenizer")
    record = json.loads((before.path / "run.json").read_text())
    for name in ("file_rule", "max_pixels"):  # which its version did not know
        del record["config"]["data"][name]
    (before.path / "run.json").write_text(json.dumps(record))
    run = kit.run_training(tmp_path / "run", short, data=str(data), stage="tokens")
    assert run.record["facts"] == record["facts"]
    assert run.record["facts"]["class_names"] == ["train", "val"]
    assert run.config.data.file_rule == 1
    info = RunInfo.load(run.path, "newest")
    assert info.open_data(None, (24, 24)).data.class_names == ("train", "val")
    asked = dataclasses.replace(short, data=dataclasses.replace(short.data, file_rule=2))
    with pytest.raises(RunError, match=r"data\.file_rule: 1 in the run, 2 now"):
        kit.run_training(tmp_path / "run", asked, data=str(data), stage="tokens")
    new = kit.run_training(tmp_path / "new", short, data=str(data), stage="tokenizer")
    assert new.record["facts"]["class_names"] == []
    assert RunFolder.load(new.path).config.data.file_rule == 2


def test_images_that_changed_are_named(kit: SimpleNamespace, short: RunConfig, tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "cat", "dog")
    run = kit.run_training(tmp_path / "run", short, data=str(data), stage="tokenizer")
    save(data / "cat" / "new.png")
    os.remove(data / "dog" / "2.png")
    differ = r"2 image files differ: cat/new\.png \(added\), dog/2\.png \(missing\)"
    with pytest.raises(RunError, match=rf"data_fingerprint: {differ} \(\w+ in the run, \w+ now\)"):
        kit.run_training(tmp_path / "run", short, data=str(data), stage="tokens")
    info = RunInfo.load(run.path, "newest")
    (note,) = [note for note in info.open_data(None, (24, 24)).notes if "not those of the training" in note]
    assert "2 image files differ: cat/new.png (added)" in note
    other = fill(tmp_path / "other", "cat")
    (other / "cat" / "0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"--data\.skip-damaged .* \(These are flags of `prologue train`"):
        info.open_data(str(other), (24, 24))
    (run.path / "data-files.jsonl.gz").unlink()
    with pytest.raises(RunError, match=r"data_fingerprint: images were added, removed or changed"):
        kit.run_training(tmp_path / "run", short, data=str(data), stage="tokens")


def test_data_without_training_images_are_refused(kit: SimpleNamespace, short: RunConfig, tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "val/cat", "val/dog")
    with pytest.raises(DataError, match=r"data holds no training images"):
        kit.run_training(tmp_path / "run", short, data=str(data))
    assert not (tmp_path / "run").exists()
