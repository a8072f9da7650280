"""`module:function` features: from importable modules alone, and of the right form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from prologue.errors import EvaluationError, PrologueError
from prologue.evaluation.distances import measure_name
from prologue.evaluation.feature_networks import open_features

SOURCE = """
import torch

class Means:
    hash = "1234"
    def __call__(self, images):
        assert images.dtype == torch.uint8
        return images.double().mean((2, 3))

def colours():
    return Means()

def halves():
    return lambda images: images[: len(images) // 2].float().mean((2, 3))

def rows():
    return lambda images: [1, 2]

def nothing():
    return None

def inception():
    return Means()

number = 3
"""
IMAGES = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_features.py").write_text(SOURCE)
    (tmp_path / "own_broken.py").write_text("import nowhere_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_features", raising=False)


def test_takes_the_name_and_the_hash_of_the_function() -> None:
    path = list(sys.path)
    extractor, reason = open_features("own_features:colours", "photos")
    assert sys.path == path
    assert reason is None
    assert (extractor.name, extractor.hash, extractor.dimension) == ("colours", "1234", None)
    assert measure_name("FD", extractor) == "FD-colours"
    features = extractor(IMAGES)
    assert (features.shape, features.dtype) == ((6, 3), torch.float32)
    with pytest.raises(EvaluationError, match="uint8"):
        extractor(IMAGES.float())
    rows, _ = open_features("own_features:rows", "photos")
    assert rows.hash is None


def test_other_forms_are_named() -> None:
    for where, named in (
        ("own_features:gone", "no attribute 'gone'"),
        ("own_features:number", "is int, and must be a function"),
        ("own_features:nothing", "returned NoneType"),
        ("own_features:inception", "rename the function"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("own_broken:make", "No module named 'nowhere_at_all'"),
        ("/tmp/features.py:make", "cannot be imported"),
        ("https://example.invalid/x:make", "cannot be imported"),
        ("own_features:", "cannot be imported"),
    ):
        with pytest.raises(PrologueError, match=named):
            open_features(where, "photos")
    halves, _ = open_features("own_features:halves", "photos")
    with pytest.raises(EvaluationError, match=r"\(6, d\), not \(3, 3\)"):
        halves(IMAGES)
    rows, _ = open_features("own_features:rows", "photos")
    with pytest.raises(EvaluationError, match="not list"):
        rows(IMAGES)
