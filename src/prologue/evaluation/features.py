"""Feature extractors that distances are measured in: EfficientNet-Lite0, the classifiers of embedded images, Inception,
or a function of the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from prologue.data.source import ENDLESS, embedded_name
from prologue.errors import EvaluationError, MissingExtraError
from prologue.evaluation.classifier import SHAPES, Kind, kind_of, load_classifier
from prologue.models.lite0 import FEATURE_DIM as LITE0_DIM
from prologue.models.lite0 import Lite0, lite0_installed, lite0_weights
from prologue.models.tokenizer import to_model_range
from prologue.models.weights import file_hash

Pixels = UInt8[Tensor, "b 3 h w"]
_CPU_CHUNK = 8
"""Images at a time on a CPU: the activations of more fall out of its caches, at three times the time per image."""
CHOICES = ("auto", "lite0", "shapes", "plates", "inception")


class FeatureExtractor(ABC):
    """A fixed function that turns lossless uint8 images into features."""

    name: str
    """What distances in these features are called after: FD-Lite0, KID-Shapes."""
    dimension: int | None
    """Features per image; None where it is not known before the first image."""
    hash: str | None
    """sha256 of the weight file, to be stated with every figure; None where nobody knows it."""
    source: str | None = None
    """Of a user's function: its module, its name and the sha256 of its code. None for features of the package."""

    @abstractmethod
    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        """Features on the CPU, in fp32. Images that are not uint8 are an `EvaluationError`."""


def checked_pixels(images: Pixels) -> Pixels:
    """The images; an `EvaluationError` where they are not uint8 of shape (b, 3, h, w)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise EvaluationError(
            f"features are taken from uint8 images of shape (b, 3, h, w), not {images.dtype} {tuple(images.shape)}"
        )
    return images


class ClassifierExtractor(FeatureExtractor):
    """A classifier, whose last features are taken and whose logits say what it sees in an image."""

    name: str
    dimension: int
    hash: str

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        # Apple's GPU lacks some of the resizing, and its other rounding would not be comparable.
        self._device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self._network = network.to(self._device)

    def __call__(self, images: Pixels) -> Float32[Tensor, "b d"]:
        return self.with_logits(images)[0]

    @torch.inference_mode()
    def with_logits(self, images: Pixels) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "b classes"]]:
        """Features and class logits, both on the CPU and in fp32."""
        size = _CPU_CHUNK if self._device.type == "cpu" else max(1, len(images))
        chunks = torch.split(checked_pixels(images).to(self._device), size)
        features, logits = zip(*(self._outputs(chunk) for chunk in chunks), strict=True)
        return torch.cat(features).float().cpu(), torch.cat(logits).float().cpu()

    @torch.inference_mode()
    def classify(self, images: Pixels) -> Int64[Tensor, " b"]:
        """The class id that each image is taken for, on the CPU."""
        return self.with_logits(images)[1].argmax(1)

    @abstractmethod
    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Features and logits of uint8 images on the network's device."""


class Lite0Extractor(ClassifierExtractor):
    """Pooled features of EfficientNet-Lite0 and its 1000 classes of ImageNet; needs the extra [lite0]."""

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
    """Penultimate features of the shipped classifier of one kind of embedded images, and its verdict on the class."""

    def __init__(self, kind: Kind, device: str | torch.device = "cpu") -> None:
        self.name, self.dimension, self.class_names = kind.name, kind.dimension, kind.class_names
        self._model = load_classifier(kind)
        super().__init__(self._model, device)
        self.hash = file_hash(kind.file)

    def _outputs(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        features = self._model.features(to_model_range(pixels))
        return features, self._model.head(features)


class ShapesExtractor(OwnExtractor):
    """Of the classifier of `shapes`."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        super().__init__(SHAPES, device)


def own_extractor(data_name: str, device: str | torch.device = "cpu") -> OwnExtractor | None:
    """Of the classifier of the embedded images that `data_name` names; None for other images."""
    kind = kind_of(data_name)
    if kind is None:
        return None
    return ShapesExtractor(device) if kind is SHAPES else OwnExtractor(kind, device)


def open_features(
    name: str, data_name: str, device: str | torch.device = "cpu", inception_weights: Path | None = None
) -> tuple[FeatureExtractor | None, str | None]:
    """The extractor `name` for images of the data source `data_name`, or None and the reason why there is none.

    `auto` takes lite0 where its extra is installed, else the classifier of embedded `shapes` or `plates`, else none. A
    name asked for must be possible: `lite0` or `inception` without its extra is a `MissingExtraError`, `shapes` or
    `plates` on other data an `EvaluationError`. `module:function` is a user's (see `FunctionExtractor`).
    """
    if ":" in name:
        from prologue.evaluation.function_features import FunctionExtractor

        return FunctionExtractor(name), None
    if name not in CHOICES:
        raise EvaluationError(f"unknown features {name!r}: choose one of {', '.join(CHOICES)}, or module:function")
    if name == "inception":
        from prologue.evaluation.inception import InceptionExtractor

        return InceptionExtractor(device, inception_weights), None
    if name == "lite0" or (name == "auto" and lite0_installed()):
        return Lite0Extractor(device), None
    if name in ENDLESS and name != embedded_name(data_name):
        raise EvaluationError(
            f"the features {name!r} know only the embedded {name}, not {data_name!r}: use lite0 (extra [lite0])"
        )
    own = own_extractor(data_name, device)
    if own is not None:
        return own, None
    return None, str(MissingExtraError("a distance between image sets", "lite0"))
