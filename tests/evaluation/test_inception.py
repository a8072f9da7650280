"""Inception features through a stand-in for torch-fidelity, which needs torchvision and is not installed here."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prologue.errors import EvaluationError, MissingExtraError
from prologue.evaluation.distances import Distances, measure_name
from prologue.evaluation.feature_networks import Features, open_features
from prologue.evaluation.inception import InceptionExtractor
from prologue.models import published
from prologue.models.published import PUBLISHED
from prologue.models.weights import file_hash

pytestmark = pytest.mark.slow

MODULE = "torch_fidelity.feature_extractor_inceptionv3"
URL = "https://example.invalid/weights-inception-2015-12-05-6726825d.pth"


class Tiny(torch.nn.Module):
    """The interface of torch-fidelity's class, as of its versions 0.3 and 0.4."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        torch.rand(3)  # the original initialises its layers
        self.fc = torch.nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.dtype == torch.uint8
        means = images.float().mean((2, 3))
        return means.repeat(1, 683)[:, :2048], self.fc(means)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(MODULE)
    module.FeatureExtractorInceptionV3 = Tiny
    module.URL_INCEPTION_V3 = URL
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, MODULE, module)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "inception.pth"
    torch.save({f"fc.{key}": value for key, value in torch.nn.Linear(3, 5).state_dict().items()}, path)
    return path


@pytest.mark.usefixtures("fidelity")
def test_features_logits_and_hash(weights: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    extractor, _ = open_features("inception", "photos", "cpu", weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(extractor, InceptionExtractor)
    assert extractor.hash == file_hash(weights)
    images = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8)
    features, logits = extractor.with_logits(images)
    assert (features.shape, logits.shape) == ((11, 2048), (11, 5))
    assert torch.equal(extractor(images), features)
    with pytest.raises(EvaluationError, match="uint8"):
        extractor(images.float())


@pytest.mark.usefixtures("fidelity")
def test_only_these_have_the_published_names(weights: Path) -> None:
    extractor = InceptionExtractor("cpu", weights)
    names = [measure_name(what, extractor) for what in ("FD", "KID", "IS")]
    assert names == ["FID", "KID", "IS"]
    distances = Distances(Features(extractor, None), of_samples=True)
    for add in (distances.add_measured, distances.add_reference):
        add(torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8))
    record = distances.record(0)
    assert (record["fd_name"], record["fd_label"], record["is_name"]) == ("FID", "FID@6", "IS")
    assert record["is_low"] <= record["is"] <= record["is_high"]


@pytest.mark.usefixtures("fidelity")
def test_weights_from_the_cache_or_a_download(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked: list[Any] = []

    def download(url: str, path: str, prefix: str, progress: bool) -> None:
        asked.append((url, prefix))
        Path(path).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert InceptionExtractor().hash == file_hash(weights)
    assert asked == [(URL, "6726825d")]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    made = tmp_path / "cache" / "weights" / PUBLISHED["inception"].file
    made.parent.mkdir(parents=True)
    torch.save({f"fc.{key}": value for key, value in torch.nn.Linear(3, 5).state_dict().items()}, made)
    with monkeypatch.context() as patched:
        patched.setattr(published, "cache_folder", lambda: tmp_path / "cache")
        assert InceptionExtractor().hash == file_hash(made)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "other"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        EvaluationError, match=r"no network.*get https://example.*prologue weights inception FILE.*--inception-weights"
    ):
        InceptionExtractor()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


@pytest.mark.usefixtures("fidelity")
def test_unsafe_damaged_and_other_weights_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = io.BytesIO()
    torch.save({"fc.weight": Evil()}, evil)
    other = io.BytesIO()
    torch.save(torch.nn.Linear(4, 5).state_dict(), other)
    for content, named in (
        (evil.getvalue(), "holds more than tensors"),
        (pickle.dumps(Evil(), protocol=2), "holds more than tensors"),
        (weights.read_bytes()[:100], "cannot be read"),
        (other.getvalue(), "does not hold the weights of Inception"),
    ):
        weights.write_bytes(content)
        with pytest.raises(EvaluationError, match=named):
            InceptionExtractor("cpu", weights)
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(EvaluationError, match=r"gone.pth is not a file"):
        InceptionExtractor("cpu", tmp_path / "gone.pth")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r"\[fid\]"):
        open_features("inception", "shapes")
