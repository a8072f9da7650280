"""The recipe of docs/extending for a data source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prologue.cli.main import main
from prologue.training.run import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An NPZ file of 24 pictures in two classes."""
    file = tmp_path / "photos.npz"
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 36, 3), dtype=np.uint8)
    np.savez(file, images=noise, labels=np.arange(24) % 2)
    return file


def train(where: str, out: Path) -> int:
    tiny = (
        "--preset shapes-smoke --device cpu --tokenizer-training.steps 2 --tokenizer-training.batch 4 "
        "--prior-training.steps 2 --prior-training.batch 4 --sample-every 2 --checkpoint-every 2"
    )
    return main(["train", "--data", where, "--out", str(out), *tiny.split()])


def test_a_source_of_ones_own(
    tmp_path: Path, images: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out, where = tmp_path / "run", f"my_images:Archive:file={images},limit=20"
    outside_module("my_images")
    assert train(where, out) == 0
    assert "20 images in 2 classes of 10 each" in capsys.readouterr().err
    run = RunFolder.load(out)
    assert run.record["facts"]["data"] == where
    assert run.record["facts"]["class_names"] == ["class 0", "class 1"]

    outside_module("my_images")  # a new process has not imported it
    measure = ["evaluate", "reconstruction", str(out), "--device", "cpu", "--json", str(tmp_path / "figures.json")]
    assert main(measure) == 2
    assert "prologue --import my_images" in capsys.readouterr().err
    assert main(["--import", "my_images", *measure]) == 0
    (record,) = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["records"]
    assert record["n"] == 2  # at least one image of each class is held out

    outside_module("my_images")
    assert train(where, out) == 0  # the same command names the source again
    outside_module("my_images")
    assert train(where.replace("=20", "=22"), out) == 2
    assert "data_fingerprint" in capsys.readouterr().err


def test_a_typed_name_is_imported_for_measurements(
    tmp_path: Path, images: Path, outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    outside_module("my_images")
    measure = ["evaluate", "reconstruction", "builtin:shapes", "--device", "cpu", "--count", "4"]
    assert main([*measure, "--data", f"my_images:Archive:file={images},limits=4"]) == 2
    assert "did you mean 'limit'" in capsys.readouterr().err
    assert main([*measure, "--data", f"my_images:Archive:file={images}"]) == 0
