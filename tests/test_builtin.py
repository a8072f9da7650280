"""The models in the package are found by name, are small, are as good as their cards say, and are never changed."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from prologue import builtin
from prologue.cli.main import main
from prologue.errors import CheckpointError
from prologue.evaluation.kinds import sweep
from prologue.models.weights import WEIGHTS, file_hash, read_tensors
from prologue.pipeline import Pipeline
from prologue.sampling.recipe import Recipe

pytestmark = pytest.mark.slow

FOLDER = Path(builtin.__file__).parent / "shapes"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / builtin.CARD).read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prologue" / "builtin-shapes"


def _hashes() -> dict[str, str]:
    return {str(file): file_hash(file) for file in sorted(FOLDER.rglob("*")) if file.is_file()}


def test_names_are_looked_up_in_the_package_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin:shapes").mkdir()
    (tmp_path / "builtin:other").mkdir()
    assert builtin.names() == ["builtin:shapes"]
    assert builtin.locate("builtin:shapes") == builtin.locate(Path("builtin:shapes")) == FOLDER
    for name in ("builtin:other", "builtin:", "builtin:../builtin/shapes", "builtin:shapes/tokenizer"):
        with pytest.raises(CheckpointError, match=r"there is builtin:shapes"):
            builtin.locate(name)
    assert builtin.locate("runs/mine") == Path("runs/mine")


def test_folders_and_names_correspond(cache: Path) -> None:
    assert builtin.shown(FOLDER) == "builtin:shapes"
    assert builtin.shown(Path("runs/mine")) == str(Path("runs/mine"))
    assert builtin.notes_folder(FOLDER) == cache
    assert builtin.notes_folder(Path("runs/mine")) == Path("runs/mine")


def test_the_model_is_small_and_in_bf16(card: dict[str, Any]) -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 10e6
    for part in ("tokenizer", "prior"):
        assert {tensor.dtype for tensor in read_tensors(FOLDER / part / WEIGHTS).values()} == {torch.bfloat16}
        assert card["weights"][part] == hashlib.sha256((FOLDER / part / WEIGHTS).read_bytes()).hexdigest()


def test_the_figures_of_the_card_are_good_enough(card: dict[str, Any]) -> None:
    measures = card["measures"]
    assert measures["guided"]["recognition"]["rate"] >= 0.9
    assert measures["unguided"]["recognition"]["rate"] >= 0.75
    assert measures["layout"]["coarse_ratio_high"] < 0.9
    assert measures["memorisation"]["coarse_nearer"] < 0.6
    assert not measures["likelihood"]["collapsed"]
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{100 * measures['guided']['recognition']['rate']:.1f} %" in told
    assert not re.search(r'"/|[A-Z]:\\', json.dumps(card))  # no path of a machine


def test_generate_draws_the_requested_classes_without_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from prologue.data.pictures import fit, open_image
    from prologue.evaluation.features import ShapesExtractor

    flags = ["--count", "32", "--seed", "5", "--dtype", "fp32", "--device", "cpu"]
    assert main(["generate", "--out", str(tmp_path / "unnamed"), *flags]) == 0
    assert main(["generate", "builtin:shapes", "--out", str(tmp_path / "named"), *flags]) == 0
    assert str(tmp_path / "named") in capfd.readouterr().out
    pictures = [sorted((tmp_path / name).glob("[0-9]*.png")) for name in ("unnamed", "named")]
    assert len(pictures[0]) == 32
    assert [file.read_bytes() for file in pictures[0]] == [file.read_bytes() for file in pictures[1]]
    images = torch.stack([fit(open_image(file), (32, 32)) for file in pictures[0]])
    seen = ShapesExtractor().classify(images)
    assert int((seen == torch.arange(32) % 8).sum()) >= 24


def test_pipeline_opens_the_model() -> None:
    pipeline = Pipeline.from_pretrained("builtin:shapes", "cpu", "fp32")
    assert pipeline.class_names[0] == "circle"
    assert pipeline.manifest.recipe is not None
    (image,) = pipeline.generate("ring", seed=1).images
    assert image.size == (32, 32)


def test_figures_are_stored_in_the_cache(cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = _hashes()
    command = ["evaluate", "likelihood", "builtin:shapes", "--count", "32", "--json", str(tmp_path / "figures.json")]
    assert main(command) == 0
    assert "likelihood of builtin:shapes" in capfd.readouterr().out
    assert len(list((cache / "evaluations").glob("likelihood-*.json"))) == 1
    assert json.loads((tmp_path / "figures.json").read_text())["provenance"]["run"] == "builtin:shapes"
    assert main(command) == 0
    assert f"found in {cache}" in capfd.readouterr().err
    assert main(["report", "builtin:shapes"]) == 0
    assert (cache / "report.html").is_file()
    assert _hashes() == before


def test_a_sweep_does_not_change_the_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    before = _hashes()
    sweep.store_winner(sweep.SweepOptions(run=FOLDER), {"winner": Recipe(temperature=0.123).to_dict()})
    assert "Not stored, since builtin:shapes is part of the package" in capfd.readouterr().out
    assert _hashes() == before


def test_unknown_names_are_errors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", "builtin:shape", "--out", str(tmp_path)], ["evaluate", "likelihood", "builtin:shape"]):
        assert main(command) == 2
        assert "this package has no model 'builtin:shape': there is builtin:shapes" in capfd.readouterr().err


def test_the_models_are_part_of_the_wheel() -> None:
    root = Path(__file__).parents[1]
    with (root / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["prologue"]
    package = root / "src" / "prologue"
    shipped = {file for pattern in patterns for file in package.glob(pattern)}
    files = {file for file in (package / "builtin").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in files if file.suffix != ".py"} <= shipped
