"""Feature extractors that distances are measured in: EfficientNet-Lite0, or the classifier of the embedded shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from prologue.errors import EvaluationError, MissingExtraError
from prologue.evaluation.classifier import FEATURE_DIM as SHAPES_DIM
from prologue.evaluation.classifier import SHIPPED, load_classifier
from prologue.nn.lite0 import FEATURE_DIM as LITE0_DIM
from prologue.nn.lite0 import Lite0, lite0_installed, lite0_weights
from prologue.tokenizer import to_model_range
from prologue.weights import file_hash

Pixels = UInt8[Tensor, "b 3 h w"]
_CPU_CHUNK = 8
"""Images at a time on a CPU: the activations of more fall out of its caches, at three times the time per image."""
CHOICES = ("auto", "lite0", "shapes")


class FeatureExtractor(ABC):
    """A fixed network that turns lossless uint8 images into features."""

    name: str
    """What distances in these features are called after: FD-Lite0, KID-Shapes."""
    dimension: int
    hash: str
    """sha256 of the weight file, to be stated with every figure."""

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        # Apple's GPU lacks some of the resizing, and its other rounding would not be comparable.
        self._device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self._network = network.to(self._device)

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        """Features on the CPU, in fp32. Images that are not uint8 are an `EvaluationError`."""
        size = _CPU_CHUNK if self._device.type == "cpu" else max(1, len(images))
        chunks = torch.split(self._prepare(images), size)
        return torch.cat([self._features(chunk) for chunk in chunks]).float().cpu()

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """Features of images in model range."""

    def _prepare(self, images: Pixels) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise EvaluationError(
                f"features are taken from uint8 images of shape (b, 3, h, w), not {images.dtype} {tuple(images.shape)}"
            )
        return to_model_range(images.to(self._device))


class Lite0Extractor(FeatureExtractor):
    """Pooled features of EfficientNet-Lite0; needs the extra [lite0]."""

    name = "Lite0"
    dimension = LITE0_DIM

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._model = Lite0()
        super().__init__(self._model, device)
        self.hash = file_hash(lite0_weights())

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self._model(images)[0]
        return features


class ShapesExtractor(FeatureExtractor):
    """Penultimate features of the shipped classifier of `shapes`, and its verdict on the class."""

    name = "Shapes"
    dimension = SHAPES_DIM

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._model = load_classifier()
        super().__init__(self._model, device)
        self.hash = file_hash(SHIPPED)

    def _features(self, images: Tensor) -> Tensor:
        return self._model.features(images)

    @torch.inference_mode()
    def classify(self, images: Pixels) -> Int64[Tensor, " b"]:
        """The class id of `shapes` that each image is taken for, on the CPU."""
        logits: Tensor = self._model(self._prepare(images))
        return logits.argmax(1).cpu()


def open_features(
    name: str, data_name: str, device: str | torch.device = "cpu"
) -> tuple[FeatureExtractor | None, str | None]:
    """The extractor `name` for images of the data source `data_name`, or None and the reason why there is none.

    `auto` takes lite0 where its extra is installed, else shapes on the embedded `shapes`, else none. A name asked for
    must be possible: `lite0` without its extra is a `MissingExtraError`, `shapes` on other data an `EvaluationError`.
    """
    if name not in CHOICES:
        raise EvaluationError(f"unknown features {name!r}: choose one of {', '.join(CHOICES)}")
    if name == "lite0" or (name == "auto" and lite0_installed()):
        return Lite0Extractor(device), None
    if name == "shapes" and data_name != "shapes":
        raise EvaluationError(
            f"the features 'shapes' know only the embedded shapes, not {data_name!r}: use lite0 (extra [lite0])"
        )
    if data_name == "shapes":
        return ShapesExtractor(device), None
    return None, str(MissingExtraError("a distance between image sets", "lite0"))
