"""`prologue evaluate probe | codebook | intervention` on tiny saved models: figures, words, pictures and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prologue import Guidance, Pipeline
from prologue.cli.main import main
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.errors import EvaluationError
from prologue.evaluation.kinds import intervention, probe
from prologue.evaluation.kinds.intervention import choose_pairs
from prologue.evaluation.kinds.probe import INPUTS
from prologue.evaluation.runs import RunImages
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils.serialization import save_json, to_dict

pytestmark = pytest.mark.slow

STORED = Recipe(Guidance.overall("linear", 2), temperature=0.9)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of real files, 30 each; and one folder of files without classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("photos/cat", "photos/dog", "flat"):
        (root / name).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def saved(tiny_models, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: `shapes`, `photos`, `plain` (its prior has no prologue), `flat` (no classes), `2d`."""
    root = tmp_path_factory.mktemp("runs")
    for name, models, manifest in (
        ("shapes", {"num_classes": 8}, Manifest(CLASS_NAMES, STORED, "shapes")),
        ("plain", {"num_classes": 8, "prior_prologue": False}, Manifest(CLASS_NAMES, None, "shapes")),
        ("photos", {"num_classes": 2}, Manifest(("cat", "dog"), None, str(photos / "photos"))),
        ("flat", {"num_classes": 0}, Manifest((), STORED, str(photos / "flat"))),
        ("2d", {"num_classes": 8, "variant": "2d"}, Manifest(CLASS_NAMES, None, "shapes")),
    ):
        Pipeline(*tiny_models(image_size=(16, 16), **models), manifest).save_pretrained(root / name)
        # As earlier versions wrote it, with the path of the images.
        save_json(root / name / "pipeline.json", to_dict(manifest))
    return root


def measure(argv: list[str], tmp_path: Path) -> dict[str, Any]:
    """The record that a call writes."""
    file = tmp_path / "figures.json"
    assert main(["evaluate", *argv, "--device", "cpu", "--json", str(file)]) == 0
    (record,) = json.loads(file.read_text())["records"]
    return record


def refused(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", *argv]) == 2
    message = capsys.readouterr().err
    assert re.search(named, message), message


def pictures(text: str) -> list[str]:
    """Short names of the pictures that a call says it made, each a readable file."""
    paths = [Path(path) for path in re.findall(r"^Picture: (.*)$", text, flags=re.MULTILINE)]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 100
    return [re.sub(r"^\w+-[0-9a-f]{12}-", "", path.stem) for path in paths]


def test_probe_of_shapes(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["probe", str(saved / "shapes"), "--count", "60", "--train-count", "120"]
    record = measure(argv, tmp_path)
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
    record = measure(["probe", str(saved / "2d"), "--count", "60", "--train-count", "80", "--tokens", "3"], tmp_path)
    assert record["visual_first_dimension"] == 3 * 4
    shown = capsys.readouterr().out
    assert pictures(shown) == ["accuracy", "factors"]
    assert "first visual tokens (12 numbers), top-1" in shown
    assert "prologue minus" not in shown
    refused(["probe", str(saved / "2d"), "--tokens", "99"], "99 first visual tokens cannot be probed", capsys)


def test_probe_of_other_images(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = measure(["probe", str(saved / "photos")], tmp_path)
    assert record["n"] + record["n_train"] == 60
    assert (record["classes"], record["factors"]) == (2, [])
    assert "prologue_top5" not in record
    assert pictures(capsys.readouterr().out) == ["accuracy"]
    refused(["probe", str(saved / "flat")], "two classes or more", capsys)


def test_sides_of_a_probe_share_no_image(photos: Path) -> None:
    from prologue.config import DataConfig
    from prologue.data.source import open_data

    data = open_data(str(photos / "photos"), DataConfig(validation_fraction=0.0), (16, 16))
    images = RunImages("photos", data, own=True)
    sides = probe._sides(images, probe.ProbeOptions(run=photos))
    assert (sides.split, len(sides.test_indices), len(sides.train_indices)) == ("train", 12, 48)
    assert not set(sides.test_indices) & set(sides.train_indices)
    assert "tested on training images" in sides.notes[0]
    with pytest.raises(EvaluationError, match="leave 2 to fit"):
        probe._sides(images, probe.ProbeOptions(run=photos, count=58))


def test_codebook(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["codebook", str(saved / "shapes"), "--count", "30"]
    record = measure(argv, tmp_path)
    assert (record["n"], record["prologue_codebook_size"], len(record["visual_entropy_bits"])) == (30, 8, 16)
    shown = capsys.readouterr().out
    assert pictures(shown) == ["code-00", "code-01", "code-02", "entropy", "usage"]
    for text in ("perplexity", "dead prologue codes", "are too low"):
        assert text in shown
    one = measure([*argv, "--code", "1:3"], tmp_path)
    shown = capsys.readouterr().out
    assert f"{one['code_images']} of 30 images have code 3 at prologue position 1" in shown
    assert ("code-01-3" in pictures(shown)) == (one["code_images"] > 0)
    assert one["prologue_entropy_bits"] == record["prologue_entropy_bits"]
    for code, named in (("3", "POSITION:CODE"), ("1:-2", "POSITION:CODE"), ("3:0", "0…2"), ("0:8", "0…7")):
        refused([*argv, "--code", code], named, capsys)
    plain = measure(["codebook", str(saved / "2d"), "--count", "5"], tmp_path)
    assert "prologue_usage" not in plain
    assert pictures(capsys.readouterr().out) == ["entropy", "usage"]
    refused(["codebook", str(saved / "2d"), "--code", "0:0"], "has no prologue", capsys)


def test_intervention(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["intervention", str(saved / "shapes"), "--pairs", "6"]
    record = measure(argv, tmp_path)
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
    other = measure([*argv, "--batch", "2", "--again"], tmp_path)
    assert other["positions"] == record["positions"]
    other = measure([*argv, "--guidance", "none", "--top-k", "3"], tmp_path)
    assert other["recipe"] == Recipe(temperature=0.9, top_k=3).to_dict()
    refused([*argv[:2], "--pairs", "0"], "--pairs must be at least 1", capsys)
    refused([*argv[:2], "--pairs", "5000"], r"10000 images.*smaller --pairs", capsys)
    with pytest.raises(EvaluationError, match="2 images, and there are 1: give more images with --data"):
        choose_pairs(1, 1, 0)
    refused([*argv[:2], "--top-p", "2"], "top_p", capsys)
    refused(["intervention", str(saved / "plain")], "has no prologue", capsys)
    flat = measure(["intervention", str(saved / "flat"), "--pairs", "1"], tmp_path)
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
