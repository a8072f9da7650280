"""The store of figures: everything that a figure depends on is in its key."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import invalidate_caches
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from PIL import Image

from prologue import Pipeline
from prologue.cli.main import main
from prologue.evaluation.evaluations import inputs_of
from prologue.evaluation.kinds import KINDS, named_kind
from prologue.evaluation.kinds.base import NoFigure, Options, Prepared, StatedBy, Told
from prologue.evaluation.store import key_of
from prologue.evaluation.versions import VERSIONS
from prologue.sampling.manifest import Manifest
from prologue.utils.processes import Processes
from prologue.utils.serialization import save_json, to_dict

pytestmark = pytest.mark.slow

CORNER = "def corner():\n    return lambda images: picked(images).flatten(1).float()\n\n"


@pytest.fixture(scope="module")
def saved(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on real files, uncompressed so that another picture has the same size."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(30):
            write_picture(root / "photos" / name / f"{index}.png", rng)
    manifest = Manifest(("cat", "dog"), None, str(root / "photos"))
    Pipeline(*tiny_models(image_size=(16, 16), num_classes=2), manifest).save_pretrained(root / "run")
    # As earlier versions wrote it, with the path of the images.
    save_json(root / "run" / "pipeline.json", to_dict(manifest))
    return root


def write_picture(path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, compress_level=0)


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations")))


class Asked:
    """One question, asked again and again."""

    def __init__(self, argv: list[str], file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.argv, self.file, self.capsys = argv, file, capsys

    def __call__(self, *more: str) -> bool:
        """Whether the figures were found."""
        self.capsys.readouterr()
        argv = ["evaluate", *self.argv, *more, "--device", "cpu", "--json", str(self.file)]
        assert main(argv) == 0
        return "found in" in self.capsys.readouterr().err

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())["records"][0]


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *argv: Asked(list(argv), tmp_path / "figures.json", capsys)


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module of features that takes some pixels, as a new process would see it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, pixels: str) -> None:
        (tmp_path / f"{name}.py").write_text(f"{CORNER}def picked(images):\n    return images[:, :, {pixels}]\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        invalidate_caches()

    return write


def test_functions_of_one_name_have_their_own_figures(run: Path, ask: Any, write_module: Any) -> None:
    write_module("mine_a", "0, :2")
    write_module("mine_b", "0, :2")
    first = ask("generation", str(run), "--count", "8", "--features", "mine_a:corner")
    assert not first()
    assert first()
    one = first.record["kid"]
    write_module("mine_a", "9, :2")  # a helper of the function was edited
    assert not first()
    assert first.record["kid"] != one
    other = ask("generation", str(run), "--count", "8", "--features", "mine_b:corner")
    assert not other()
    assert other.record["kid"] == one


def test_a_reference_made_with_other_code_is_refused(
    run: Path, tmp_path: Path, ask: Any, write_module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_module("mine_c", "0, :2")
    features = ["--features", "mine_c:corner"]
    ask("reference", str(run), *features, "--out", str(tmp_path / "train.npz"))()
    argv = ["generation", str(run), "--count", "8", *features, "--reference", str(tmp_path / "train.npz")]
    assert not ask(*argv)()
    write_module("mine_c", "9, :2")
    assert main(["evaluate", *argv]) == 2
    assert "other code of corner" in capsys.readouterr().err


def test_the_figures_of_other_images_configurations_and_classes_are_others(
    run: Path, saved: Path, tmp_path: Path, ask: Any
) -> None:
    photos = Path(shutil.copytree(saved / "photos", tmp_path / "photos"))
    likelihood = ask("likelihood", str(run), "--data", str(photos))
    assert not likelihood()
    assert likelihood()
    picture = photos / "cat" / "0.png"
    size, time = picture.stat().st_size, picture.stat().st_mtime_ns
    write_picture(picture, np.random.default_rng(1))
    assert picture.stat().st_size == size
    os.utime(picture, ns=(time, time + 1))
    assert not likelihood()
    config = json.loads((run / "prior" / "config.json").read_text())
    config["transformer"]["rope_axes"] = [4, 4, 4]  # the same tensors, another model
    (run / "prior" / "config.json").write_text(json.dumps(config))
    before = likelihood.record["nats"]
    assert not likelihood()
    assert likelihood.record["nats"] != before
    before = likelihood.record["nats"]
    dataclasses.replace(Manifest.load(run), class_names=("dog", "cat")).save(run)
    assert not likelihood()
    assert likelihood.record["nats"] != before
    assert likelihood()


def test_a_new_version_of_a_figure_is_measured(run: Path, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = ask("codebook", str(run), "--count", "4")
    assert not codebook()
    monkeypatch.setitem(VERSIONS, "probe", 2)
    assert codebook()
    monkeypatch.setitem(VERSIONS, "codebook", 2)
    assert not codebook()
    assert json.loads(codebook.file.read_text())["provenance"]["versions"] == {"codebook": 2, "features": 1}


def test_several_processes_leave_out_what_one_looks_up(
    run: Path, ask: Any, write_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module("mine_d", "0, :2")
    generation = ask("generation", str(run), "--count", "8", "--features", "mine_d:corner")
    with monkeypatch.context() as patched:
        patched.setattr(Processes, "join", classmethod(lambda cls, device: Lonely(0, 2)))
        assert not generation()
        assert generation.record["memorisation"] is None
    assert not generation()
    assert generation.record["memorisation"] is not None


class Lonely(Processes):
    """The first of two processes, which does the work of both."""

    def share(self, steps: Any) -> Any:
        return steps

    def gather(self, rows: Any) -> Any:
        return rows


@dataclass(frozen=True, kw_only=True)
class _Some(Options):
    fresh: int = 1
    told: Annotated[int, NoFigure()] = 1
    file: Annotated[str | None, StatedBy("file_hash")] = None


def _key(facts: dict[str, Any] | None = None, **options: Any) -> str:
    known = {"weights": 1, "configs": 1, "manifest": 1, "device": "cpu"} | (facts or {})
    prepared = Prepared(_Some(run=Path("run"), **options), known, lambda: pytest.fail("measured"))
    return key_of(inputs_of(named_kind("layout"), prepared))


def test_an_option_counts_unless_it_is_marked() -> None:
    assert _key() == _key(told=2) == _key({"path": Told("a")}) == _key({"path": Told("b")})
    assert _key() != _key(fresh=2)
    assert _key() != _key({"more": 1})
    assert _key({"file_hash": 1}, file="a") == _key({"file_hash": 1}, file="b") != _key({"file_hash": 2}, file="a")
    with pytest.raises(AssertionError, match=r"--file.*file_hash"):
        _key(file="a")


def test_every_kind_has_a_version() -> None:
    assert set(KINDS) | {"features"} == set(VERSIONS)
    assert all(named_kind(kind).summary for kind in KINDS)
