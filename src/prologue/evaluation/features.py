"""Feature networks of the package: EfficientNet-Lite0 and the classifiers of embedded images."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from prologue.errors import EvaluationError
from prologue.evaluation.classifier import SHAPES, Kind, kind_of, load_classifier
from prologue.models.lite0 import FEATURE_DIM as LITE0_DIM
from prologue.models.lite0 import Lite0, lite0_weights
from prologue.models.tokenizer import to_model_range
from prologue.models.weights import file_hash

Pixels = UInt8[Tensor, "b 3 h w"]
_CPU_CHUNK = 8
"""Images per forward pass on a CPU. With more, activations do not fit its caches; each image takes 3 times as long."""


class FeatureExtractor(ABC):
    """A fixed function from uint8 images to features."""

    name: str
    """Suffix of the names of distances: FD-Lite0, KID-Shapes."""
    dimension: int | None
    """Features per image; None if it is unknown before the first image."""
    hash: str | None
    """sha256 of the weight file, stated with every figure; None if unknown."""
    source: str | None = None
    """Features from outside the package: their name and the sha256 of their code."""

    @abstractmethod
    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        """Features on the CPU, in fp32. Images that are not uint8 are an `EvaluationError`."""


def checked_pixels(images: Pixels) -> Pixels:
    """The images; an `EvaluationError` if they are not uint8 of shape (b, 3, h, w)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise EvaluationError(
            f"features need uint8 images of shape (b, 3, h, w), not {images.dtype} {tuple(images.shape)}"
        )
    return images


class ClassifierExtractor(FeatureExtractor):
    """A classifier: its last features, and its class logits."""

    name: str
    dimension: int
    hash: str

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        # MPS lacks some resizing operations, and its rounding differs.
        self._device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self._network = network.to(self._device)

    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        return self.with_logits(images)[0]

    @torch.inference_mode()
    def with_logits(self, images: Pixels) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "b classes"]]:
        """Features and class logits, on the CPU and in fp32."""
        size = _CPU_CHUNK if self._device.type == "cpu" else max(1, len(images))
        chunks = torch.split(checked_pixels(images).to(self._device), size)
        features, logits = zip(*(self._outputs(chunk) for chunk in chunks), strict=True)
        return torch.cat(features).float().cpu(), torch.cat(logits).float().cpu()

    @torch.inference_mode()
    def classify(self, images: Pixels) -> Int64[Tensor, " b"]:
        """The predicted class id of each image, on the CPU."""
        return self.with_logits(images)[1].argmax(1)

    @abstractmethod
    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Features and logits of uint8 images on the network's device."""


class Lite0Extractor(ClassifierExtractor):
    """Pooled features of EfficientNet-Lite0 and its 1000 ImageNet classes; needs the extra [lite0]."""

    name = "Lite0"
    dimension = LITE0_DIM

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._model = Lite0()
        super().__init__(self._model, device)
        self.hash = file_hash(lite0_weights())

    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self._model(to_model_range(pixels))
        return outputs


class OwnExtractor(ClassifierExtractor):
    """Penultimate features and class logits of the shipped classifier of one kind of embedded images."""

    def __init__(self, kind: Kind, device: str | torch.device = "cpu") -> None:
        self.name, self.dimension, self.class_names = kind.name, kind.dimension, kind.class_names
        self._model = load_classifier(kind)
        super().__init__(self._model, device)
        self.hash = file_hash(kind.file)

    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        features = self._model.features(to_model_range(pixels))
        return features, self._model.head(features)


class ShapesExtractor(OwnExtractor):
    """Features and logits of the classifier of `shapes`."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        super().__init__(SHAPES, device)


def own_extractor(data_name: str, device: str | torch.device = "cpu") -> OwnExtractor | None:
    """The classifier of the embedded images `data_name`; None for other images."""
    kind = kind_of(data_name)
    if kind is None:
        return None
    return ShapesExtractor(device) if kind is SHAPES else OwnExtractor(kind, device)
