"""`prologue evaluate` against references, in own features, with samples for other evaluators."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.cli.refusals import refused_evaluation as refused

from prologue import Pipeline
from prologue.cli.main import main
from prologue.cli.options import parse
from prologue.data.embedded.shapes import CLASS_NAMES
from prologue.evaluation import evaluations
from prologue.evaluation.distances import moments_of
from prologue.evaluation.features import ShapesExtractor
from prologue.evaluation.kinds import generation, reconstruction
from prologue.evaluation.metrics.frechet import frechet_from_moments
from prologue.models import published
from prologue.models.perceptual import Lpips
from prologue.models.published import PUBLISHED
from prologue.models.weights import file_hash
from prologue.sampling.manifest import Manifest
from prologue.utils import locks
from prologue.utils.processes import Processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "shapes"
    models = tiny_models(image_size=(16, 16), num_classes=8)
    Pipeline(*models, Manifest(CLASS_NAMES, None, "shapes")).save_pretrained(run)
    return run


@pytest.fixture
def run(saved: Path) -> Path:
    for kept in (saved / "evaluations").glob("*"):
        kept.unlink()
    return saved


def measure(argv: list[str], tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = tmp_path / "figures.json"
    assert main(["evaluate", *argv, "--device", "cpu", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    return written["records"][0], written["provenance"]


def test_a_reference_is_written_found_again_and_measured_against(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "train.npz"
    argv = ["reference", str(run), "--count", "20", "--images", "8", "--features", "shapes", "--out", str(out)]
    record, _ = measure(argv, tmp_path)
    assert (record["n"], record["split"], record["images"], record["dimension"]) == (20, "train", 8, 128)
    assert record["sha256"] == file_hash(out)
    card = json.loads(out.with_suffix(".json").read_text())
    assert (card["features"], card["count"], card["image_size"], card["split"]) == ("Shapes", 20, [16, 16], "train")
    assert "N = 20 training images" in capsys.readouterr().out
    measure(argv, tmp_path)
    assert "found in" in capsys.readouterr().err
    refused([*argv, "--seed", "1"], "exists.*--again", capsys)
    out.unlink()
    assert measure(argv, tmp_path)[0]["sha256"] == file_hash(out)  # the file is part of what is asked for

    generation = ["generation", str(run), "--count", "9", "--features", "shapes", "--reference", str(out)]
    record, origin = measure([*generation, "--samples-npz", str(tmp_path / "samples.npz")], tmp_path)
    assert (record["n_reference"], record["n_compared"], record["reference_declared"]) == (20, 8, False)
    assert record["reference_sha256"] == origin["reference_sha256"] == file_hash(out)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples, np.load(out) as reference:
        assert (samples["arr_0"].shape, samples["arr_0"].dtype) == ((9, 16, 16, 3), np.uint8)
        assert samples["arr_1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
        features = ShapesExtractor()(torch.from_numpy(samples["arr_0"]).permute(0, 3, 1, 2))
        theirs = [torch.from_numpy(reference[name]) for name in ("mu", "sigma")]
    assert record["fd"] == pytest.approx(frechet_from_moments(*moments_of(features), *theirs))
    shown = capsys.readouterr().out
    for text in (
        "of 20 training images",
        "KID-Shapes is measured against the 8",
        "FD-Shapes@9",
        "9 samples, 8 real images",
    ):
        assert text in shown
    refused([*generation, "--samples-npz", str(tmp_path / "samples.npz")], "exists.*--again", capsys)
    refused(["reconstruction", str(run), "--reference", str(out), "--features", "shapes"], "train images", capsys)
    other = tmp_path / "same.npz"
    other.write_bytes(out.read_bytes())
    other.with_suffix(".json").write_bytes(out.with_suffix(".json").read_bytes())
    measure([*generation[:-1], str(other)], tmp_path)
    assert "found in" in capsys.readouterr().err  # by what is in the file, not by its name


def test_a_foreign_reference_is_declared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "foreign.npz"
    np.savez(out, mu=np.zeros(128), sigma=np.eye(128))
    argv = ["reconstruction", str(run), "--count", "6", "--features", "shapes", "--reference", str(out)]
    refused(argv, "declare --reference-features.*--reference-split", capsys)
    declared = ["--reference-features", "shapes", "--reference-split", "validation"]
    record, _ = measure([*argv, *declared], tmp_path)
    assert (record["reference_declared"], record["n_reference"], record["kid"]) == (True, None, None)
    assert record["fd"] > 0
    shown = capsys.readouterr().out
    assert "declared, not known" in shown
    assert "holds statistics alone" in shown
    assert f"Distances are measured against {out}." in shown
    refused([*argv, *declared[:2], "--reference-split", "train"], "train images.*validation images", capsys)
    refused([*argv, "--reference-features", "lite0", *declared[2:]], "features lite0.*in Shapes", capsys)
    refused([*argv[:-2], *declared], "give --reference FILE", capsys)
    refused([*argv[:-2], "--inception-weights", str(out)], "needs --features inception", capsys)
    refused([*argv[:-1], str(tmp_path / "gone.npz")], "gone.npz is not a file", capsys)


def test_lpips_where_its_weights_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(kind: str, path: Path) -> Lpips:
        return Lpips((2, 3), (1, 1)).load(path)

    torch.manual_seed(0)
    network, file = Lpips((2, 3), (1, 1)), tmp_path / "lpips.safetensors"
    save_file({key: value.abs() for key, value in network.state_dict().items()}, file)
    monkeypatch.setattr(reconstruction, "perceptual_loss", small)
    argv = ["reconstruction", str(run), "--count", "5", "--features", "shapes", "--lpips", str(file)]
    record, origin = measure(argv, tmp_path)
    assert record["lpips_low"] < record["lpips"] < record["lpips_high"]
    assert origin["lpips_hash"] == file_hash(file)
    assert "LPIPS-VGG16" in capsys.readouterr().out
    assert measure([*argv, "--batch", "2", "--again"], tmp_path)[0]["lpips"] == pytest.approx(record["lpips"])
    assert measure(argv[:-2], tmp_path)[0].get("lpips") is None
    made = tmp_path / "cache" / "weights" / PUBLISHED["lpips"].file
    made.parent.mkdir(parents=True)
    made.write_bytes(file.read_bytes())
    monkeypatch.setattr(published, "cache_folder", lambda: tmp_path / "cache")
    assert measure(argv[:-2], tmp_path)[0]["lpips"] == pytest.approx(record["lpips"])
    assert "found in" in capsys.readouterr().err  # by what is in the file
    assert measure([*argv[:-1], "off"], tmp_path)[0].get("lpips") is None


def test_mistakes_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = ["reference", str(run), "--features", "shapes", "--out"]
    for argv, named in (
        ([*reference, "a.bin"], "must end in .npz"),
        ([*reference, "a.npz", "--images", "-1"], "--images"),
        ([*reference, "a.npz", "--count", "0"], "--count"),
        ([*reference[:-1]], "out"),
        (["generation", str(run), "--samples-npz", "a.zip"], "must end in .npz"),
        (["generation", str(run), "--features", "vgg"], "unknown feature network 'vgg'.*`module:name`"),
        (["generation", str(run), "--features", "nowhere:make"], "No module named 'nowhere'"),
    ):
        refused(argv, named, capsys)


def test_one_process_writes_the_samples(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Processes, "join", classmethod(lambda cls, device: cls(0, 2)))
    argv = ["generation", str(run), "--samples-npz", str(tmp_path / "samples.npz")]
    refused(argv, "without the launcher", capsys)


def test_one_of_several_processes_speaks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    file = tmp_path / "figures.json"
    assert main(["evaluate", "likelihood", str(run), "--count", "4", "--device", "cpu", "--json", str(file)]) == 0
    assert capsys.readouterr().out == ""
    assert not file.exists()
    assert not list((run / "evaluations").glob("*"))


def test_the_same_measurement_waits_and_others_go_side_by_side(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "likelihood", str(run), "--count", "4", "--device", "cpu"]
    assert main(argv) == 0
    (kept,) = (run / "evaluations").glob("*.json")
    content = kept.read_bytes()
    kept.unlink()
    capsys.readouterr()
    begun, given = threading.Event(), threading.Event()

    def other_process() -> None:
        with locks.file_lock(kept):
            begun.set()
            given.wait(60)
            kept.write_bytes(content)

    holder = threading.Thread(target=other_process)
    holder.start()
    begun.wait(60)
    assert main([*argv, "--seed", "1"]) == 0  # another measurement of the run
    assert "waiting" not in capsys.readouterr().err
    said = evaluations.print_waiting
    monkeypatch.setattr(evaluations, "print_waiting", lambda: (said(), given.set()))
    assert main(argv) == 0
    holder.join()
    err = capsys.readouterr().err
    assert "another process measures the same: waiting for its figures" in err
    assert "found in" in err
    assert not list((run / "evaluations").glob(".*"))


def test_two_references_are_not_written_to_one_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    argv = ["reference", str(run), "--count", "20", "--features", "shapes", "--out", str(tmp_path / "a.npz")]
    with locks.file_lock(tmp_path / "a.npz"):
        refused(argv, r"another process is writing .*a\.npz", capsys)
    os.mkfifo(tmp_path / "fifo.npz")
    refused([*argv[:-1], str(tmp_path / "fifo.npz")], "is a pipe or a device, and a reference is two files", capsys)


def test_samples_may_go_through_a_pipe(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    argv = [str(run), "--samples-npz", str(tmp_path / "fifo")]
    options = parse(generation.GenerationOptions, argv, "prologue evaluate generation", "")
    generation._check_archive(options, Processes())
