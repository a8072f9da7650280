"""What evaluations share: the choice of images, the images of a run, and its models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prologue.config import DataConfig, RunConfig
from prologue.data.source import Data
from prologue.errors import CheckpointError, DataError, EvaluationError
from prologue.evaluation.runs import RunImages, RunInfo, Split, choose_images, evaluating, true_classes
from prologue.sampling.manifest import Manifest
from prologue.training.run import RunFolder
from prologue.utils.serialization import save_json


def test_images_are_chosen_at_random_once_each() -> None:
    assert choose_images(5, None, 0, "a").tolist() == choose_images(5, 9, 0, "a").tolist() == [0, 1, 2, 3, 4]
    chosen = choose_images(1000, 100, 0, "a")
    assert len(set(chosen.tolist())) == 100
    assert (np.diff(chosen) > 0).all()
    assert chosen.max() > 800
    assert chosen.tolist() == choose_images(1000, 100, 0, "a").tolist()
    assert chosen.tolist() != choose_images(1000, 100, 1, "a").tolist()
    with pytest.raises(EvaluationError, match="count must be at least 1"):
        choose_images(5, 0, 0, "a")


def test_training_images_stand_in_and_are_marked(pictures: type[Any]) -> None:
    train, held = pictures(4), pictures(2)
    images = RunImages("where", Data(train, held, (), "f"), own=True)
    assert images.measured() == Split("validation", held)
    assert images.reference() is train
    split = RunImages("where", Data(train, pictures(0), (), "f"), own=True).measured()
    assert (split.name, split.images) == ("train", train)
    assert "no images are held out" in split.notes[0]


def test_images_of_no_training_are_measured_whole(pictures: type[Any]) -> None:
    train, held = pictures(4), pictures(2, classes=2, seed=1)
    images = RunImages("where", Data(train, held, (), "f"), own=False)
    split = images.measured()
    assert (split.name, split.notes, len(split.images)) == ("given", (), 6)
    assert split.images.labels.tolist() == [*train.labels.tolist(), *held.labels.tolist()]
    for index, (part, inside) in enumerate([(train, 0), (train, 1), (train, 2), (train, 3), (held, 0), (held, 1)]):
        assert np.array_equal(split.images.center_view(index), part.center_view(inside))
    with pytest.raises(IndexError):
        split.images.center_view(6)
    assert len(images.reference()) == 6
    assert RunImages("where", Data(train, pictures(0), (), "f"), own=False).measured() == Split("given", train)


def test_models_return_to_their_mode(tiny_models) -> None:
    tokenizer, prior = tiny_models()
    tokenizer.train()
    with evaluating(tokenizer, prior):
        assert not tokenizer.training
        assert torch.is_inference_mode_enabled()
    assert tokenizer.training
    assert not prior.training


def test_a_run_says_where_its_images_are(tmp_path) -> None:
    Manifest(("a",)).save(tmp_path / "imported")
    imported = RunInfo.load(tmp_path / "imported")
    with pytest.raises(EvaluationError, match=r"imported.*--data WHERE"):
        imported.open_data(None, (8, 8))
    assert imported.open_data("shapes", (8, 8)).source == "shapes"
    Manifest(("a",)).save(tmp_path / "moved")
    save_json(tmp_path / "moved" / "pipeline.json", {"class_names": ["a"], "data": str(tmp_path / "gone"), "format": 1})
    with pytest.raises(DataError, match=r"gone.*--data WHERE"):
        RunInfo.load(tmp_path / "moved").open_data(None, (8, 8))


def test_a_run_is_read_with_its_own_options(tmp_path) -> None:
    config = RunConfig(data=DataConfig(shapes_images=7, shapes_validation=3))
    facts = {"data": "shapes", "data_fingerprint": "old", "class_names": ["a"]}
    run = RunFolder.open(tmp_path / "run", config, facts)
    with pytest.raises(CheckpointError, match="not a finished run"):
        RunInfo.load(run.path)
    run.set_stage("tokenizer", finished=True)
    info = RunInfo.load(run.path)  # its prior is still to be trained
    assert info.manifest == Manifest(("a",), data="shapes")
    assert info.weights == {}
    run.set_stage("tokenizer", trained_on=["lite0"])  # as the run says that it was taken from
    assert RunInfo.load(run.path).manifest.trained_on == ("lite0",)
    images = info.open_data(None, (8, 8))
    assert (images.source, len(images.data.train), len(images.data.validation)) == ("shapes", 7, 3)
    assert images.own
    assert "not those of the training any more" in images.notes[0]
    assert info.open_data("shapes", (8, 8)).notes == ()


def test_classes_are_matched_by_name() -> None:
    labels = np.array([0, 1, 1])
    assert true_classes(labels, ("a", "b"), ("a", "b"), 2)[0].tolist() == [0, 1, 1]
    assert true_classes(labels, ("a", "c"), ("c", "b", "a"), 3)[0].tolist() == [2, 0, 0]
    assert true_classes(labels, ("a", "b"), (), 0)[0].tolist() == [0, 0, 0]
    null, notes = true_classes(labels, (), ("a", "b"), 2)
    assert null.tolist() == [2, 2, 2]
    assert "null class" in notes[0]
    numbered, notes = true_classes(labels, ("cat", "dog"), ("0", "1"), 2)
    assert numbered.tolist() == [0, 1, 1]
    assert "in their order" in notes[0]
    with pytest.raises(EvaluationError, match="'dog'"):
        true_classes(labels, ("a", "dog"), ("a", "b"), 2)
