"""Reconstructions against the same images, and what all evaluations share: intervals, distances, choice of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prologue.config import DataConfig, RunConfig
from prologue.data.source import Data
from prologue.errors import CheckpointError, DataError, EvaluationError
from prologue.evaluation import distances as distances_module
from prologue.evaluation import feature_networks
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction
from prologue.evaluation.metrics.frechet import GaussianStatistics, frechet_distance
from prologue.evaluation.metrics.intervals import Interval, mean_interval, wilson_interval
from prologue.evaluation.metrics.kid import kernel_distance
from prologue.evaluation.metrics.pixels import psnr, ssim
from prologue.evaluation.runs import RunImages, RunInfo, Split, choose_images, evaluating
from prologue.models.tokenizer import to_model_range, to_uint8
from prologue.sampling.manifest import Manifest
from prologue.training import codebooks
from prologue.training.run import RunFolder
from prologue.utils.serialization import save_json


class Pictures:
    """Random images as an `ImageSet`, read through center views alone."""

    size = (8, 12)
    views = 1

    def __init__(self, count: int, classes: int = 3, seed: int = 0) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, *self.size), dtype=np.uint8)
        self.labels = np.arange(count, dtype=np.int64) % classes

    def __len__(self) -> int:
        return len(self.pixels)

    def center_view(self, index: int) -> np.ndarray:
        return self.pixels[index]


class Means:
    """Features that need no network: mean colours; remembers what it was shown."""

    name, dimension, hash = "Means", 3, "abc"

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        self.shown.append(images)
        return images.float().mean((2, 3))


def test_figures_are_of_the_same_images(tiny_models) -> None:
    tokenizer, _ = tiny_models()
    tokenizer.train()
    pictures, extractor = Pictures(10), Means()
    record = evaluate_reconstruction(tokenizer, Split("validation", pictures), Features(extractor, None), batch=4)
    assert tokenizer.training
    originals = torch.from_numpy(pictures.pixels)
    tokenizer.eval()
    ids = tokenizer.encode(to_model_range(originals)).visual
    expected = to_uint8(tokenizer.decode(ids))
    for name, values in (("psnr", psnr(expected, originals)), ("ssim", ssim(expected, originals))):
        assert record[name] == pytest.approx(float(values.mean()))
        reach = 1.96 * float(values.std()) / 10**0.5
        assert record[f"{name}_high"] - record[name] == pytest.approx(reach, rel=1e-3)
        assert record[name] - record[f"{name}_low"] == pytest.approx(reach, rel=1e-3)
    assert torch.equal(torch.cat(extractor.shown[0::2]), expected)
    assert torch.equal(torch.cat(extractor.shown[1::2]), originals)
    first, second = (images.float().mean((2, 3)) for images in (expected, originals))
    assert record["kid"] == pytest.approx(kernel_distance(first, second).value)
    moments = [GaussianStatistics(3), GaussianStatistics(3)]
    for statistics, features in zip(moments, (first, second), strict=True):
        statistics.update(features)
    assert record["fd"] == pytest.approx(frechet_distance(*moments))
    assert (record["fd_name"], record["kid_name"]) == ("FD-Means", "KID-Means")
    assert (record["n"], record["split"], record["features_hash"]) == (10, "validation", "abc")
    assert record["visual_usage"] == pytest.approx(len(ids.unique()) / 16)
    p = torch.bincount(ids.flatten(), minlength=16).double() / ids.numel()
    assert record["visual_perplexity"] == pytest.approx(float(torch.exp(-torch.special.xlogy(p, p).sum())))


def test_few_images_mark_the_frechet_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    def record() -> dict:
        distances = Distances(Features(Means(), None))
        images = torch.from_numpy(Pictures(6).pixels)
        distances.add_measured(images)
        distances.add_reference(images[:5])
        return distances.record(0)

    assert (record()["leads"], record()["indicative"]) == ("kid", True)
    monkeypatch.setattr(distances_module, "INDICATIVE", 5)
    assert (record()["leads"], record()["indicative"]) == ("fd", False)
    monkeypatch.setattr(distances_module, "INDICATIVE", 6)
    assert record()["indicative"] is True


def test_without_features_the_rest_is_measured(tiny_models) -> None:
    record = evaluate_reconstruction(tiny_models()[0], Split("validation", Pictures(5)), Features(None, "no extra"))
    assert record["psnr"] > 0
    assert record["reason"] == "no extra"
    assert [record[name] for name in ("fd", "kid", "kid_low", "leads", "indicative", "fd_name")] == [None] * 6


def test_too_few_images_have_no_distance(tiny_models) -> None:
    split = Split("validation", Pictures(5))
    record = evaluate_reconstruction(tiny_models()[0], split, Features(Means(), None), count=2)
    assert (record["n"], record["fd"]) == (2, None)
    assert "at least 3 images" in record["reason"]
    record = evaluate_reconstruction(tiny_models()[0], split, Features(Means(), None), count=1)
    assert (record["psnr_low"], record["psnr_high"]) == (None, None)
    with pytest.raises(EvaluationError, match="no images"):
        evaluate_reconstruction(tiny_models()[0], Split("validation", Pictures(0)), Features())


def test_a_collapsed_codebook_is_said(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "COLLAPSED_USAGE", 0.1)
    tokenizer, _ = tiny_models()
    with torch.no_grad():
        tokenizer.visual_quantizer.codebook.fill_(1.0)  # all rows equal: the first of 16 always wins
    record = evaluate_reconstruction(tokenizer, Split("validation", Pictures(9), ("said before",)), Features())
    assert record["collapsed"] is True
    assert record["notes"][0] == "said before"
    assert "visual codebook has collapsed" in record["notes"][1]
    assert "dead-code-reset-every" in record["notes"][1]
    # The 6 tokens of one image could not use more than 6 codes.
    few = evaluate_reconstruction(tokenizer, Split("validation", Pictures(9)), Features(), count=1)
    assert (few["collapsed"], few["notes"]) == (False, [])


def test_marked_where_the_run_trained_on_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = Means()
    extractor.name = "Lite0"
    monkeypatch.setattr(feature_networks, "open_features", lambda name, data, device, weights: (extractor, None))
    assert Features.open("auto", "shapes", "cpu", ("lite0",)).trained_on is True
    assert Features.open("auto", "shapes", "cpu", ("lpips",)).trained_on is False
    assert Distances(Features(extractor, None, True)).record(0)["trained_on_features"] is True


def test_intervals() -> None:
    # Wilson's interval of 8 in 10 and 0 in 10, as tables print them.
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert mean_interval(torch.tensor([1.0, 3.0])) == pytest.approx((2.0, 2 - 1.959964, 2 + 1.959964))
    assert Interval(1.0, None, 2.0).fields("x", 10) == {"x": 10.0, "x_low": None, "x_high": 20.0}


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


def test_training_images_stand_in_and_are_marked() -> None:
    train, held = Pictures(4), Pictures(2)
    images = RunImages("where", Data(train, held, (), "f"), own=True)
    assert images.measured() == Split("validation", held)
    assert images.reference() is train
    split = RunImages("where", Data(train, Pictures(0), (), "f"), own=True).measured()
    assert (split.name, split.images) == ("train", train)
    assert "no images are held out" in split.notes[0]


def test_images_of_no_training_are_measured_whole() -> None:
    train, held = Pictures(4), Pictures(2, classes=2, seed=1)
    images = RunImages("where", Data(train, held, (), "f"), own=False)
    split = images.measured()
    assert (split.name, split.notes, len(split.images)) == ("given", (), 6)
    assert split.images.labels.tolist() == [*train.labels.tolist(), *held.labels.tolist()]
    for index, (part, inside) in enumerate([(train, 0), (train, 1), (train, 2), (train, 3), (held, 0), (held, 1)]):
        assert np.array_equal(split.images.center_view(index), part.center_view(inside))
    with pytest.raises(IndexError):
        split.images.center_view(6)
    assert len(images.reference()) == 6
    assert RunImages("where", Data(train, Pictures(0), (), "f"), own=False).measured() == Split("given", train)


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
