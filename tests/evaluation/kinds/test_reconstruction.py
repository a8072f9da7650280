"""Reconstructions against the same images: figures, distances and collapses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation import distances as distances_module
from prologue.evaluation import feature_networks
from prologue.evaluation.distances import Distances
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.kinds.reconstruction import evaluate_reconstruction
from prologue.evaluation.metrics.frechet import GaussianStatistics, frechet_distance
from prologue.evaluation.metrics.kid import kernel_distance
from prologue.evaluation.metrics.pixels import psnr, ssim
from prologue.evaluation.runs import Split
from prologue.models.tokenizer import to_model_range, to_uint8
from prologue.training import codebooks


def test_figures_are_of_the_same_images(tiny_models, pictures: type[Any], means: type[Any]) -> None:
    tokenizer, _ = tiny_models()
    tokenizer.train()
    pictures, extractor = pictures(10), means()
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


def test_few_images_mark_the_frechet_distance(
    monkeypatch: pytest.MonkeyPatch, pictures: type[Any], means: type[Any]
) -> None:
    def record() -> dict:
        distances = Distances(Features(means(), None))
        images = torch.from_numpy(pictures(6).pixels)
        distances.add_measured(images)
        distances.add_reference(images[:5])
        return distances.record(0)

    assert (record()["leads"], record()["indicative"]) == ("kid", True)
    monkeypatch.setattr(distances_module, "INDICATIVE", 5)
    assert (record()["leads"], record()["indicative"]) == ("fd", False)
    monkeypatch.setattr(distances_module, "INDICATIVE", 6)
    assert record()["indicative"] is True


def test_without_features_the_rest_is_measured(tiny_models, pictures: type[Any]) -> None:
    record = evaluate_reconstruction(tiny_models()[0], Split("validation", pictures(5)), Features(None, "no extra"))
    assert record["psnr"] > 0
    assert record["reason"] == "no extra"
    assert [record[name] for name in ("fd", "kid", "kid_low", "leads", "indicative", "fd_name")] == [None] * 6


def test_too_few_images_have_no_distance(tiny_models, pictures: type[Any], means: type[Any]) -> None:
    split = Split("validation", pictures(5))
    record = evaluate_reconstruction(tiny_models()[0], split, Features(means(), None), count=2)
    assert (record["n"], record["fd"]) == (2, None)
    assert "at least 3 images" in record["reason"]
    record = evaluate_reconstruction(tiny_models()[0], split, Features(means(), None), count=1)
    assert (record["psnr_low"], record["psnr_high"]) == (None, None)
    with pytest.raises(EvaluationError, match="no images"):
        evaluate_reconstruction(tiny_models()[0], Split("validation", pictures(0)), Features())


def test_a_collapsed_codebook_is_said(tiny_models, monkeypatch: pytest.MonkeyPatch, pictures: type[Any]) -> None:
    monkeypatch.setattr(codebooks, "COLLAPSED_USAGE", 0.1)
    tokenizer, _ = tiny_models()
    with torch.no_grad():
        tokenizer.visual_quantizer.codebook.fill_(1.0)  # all rows equal: the first of 16 always wins
    record = evaluate_reconstruction(tokenizer, Split("validation", pictures(9), ("said before",)), Features())
    assert record["collapsed"] is True
    assert record["notes"][0] == "said before"
    assert "visual codebook has collapsed" in record["notes"][1]
    assert "dead-code-reset-every" in record["notes"][1]
    # The 6 tokens of one image could not use more than 6 codes.
    few = evaluate_reconstruction(tokenizer, Split("validation", pictures(9)), Features(), count=1)
    assert (few["collapsed"], few["notes"]) == (False, [])


def test_marked_where_the_run_trained_on_the_features(monkeypatch: pytest.MonkeyPatch, means: type[Any]) -> None:
    extractor = means()
    extractor.name = "Lite0"
    monkeypatch.setattr(feature_networks, "open_features", lambda name, data, device, weights: (extractor, None))
    assert Features.open("auto", "shapes", "cpu", ("lite0",)).trained_on is True
    assert Features.open("auto", "shapes", "cpu", ("lpips",)).trained_on is False
    assert Distances(Features(extractor, None, True)).record(0)["trained_on_features"] is True
