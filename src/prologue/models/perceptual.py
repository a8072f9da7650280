"""Perceptual losses of a reconstruction and its image (METHOD §7): LPIPS-VGG16, ConvNeXt-S logits, Lite0 features.

All networks are frozen and take images in model range. Gradients reach the reconstruction only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prologue.config import Perceptual
from prologue.errors import ConfigError
from prologue.models.convnext import ConvNeXt
from prologue.models.lite0 import Lite0, resize
from prologue.models.published import place
from prologue.models.weights import load_exactly, read_tensors

Images = Float[Tensor, "b 3 h w"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)
_LPIPS_EPS = 1e-10


def perceptual_loss(kind: Perceptual, path: str | Path | None = None) -> PerceptualLoss | None:
    """The perceptual loss `kind`, a module on the CPU that maps (reconstruction, image) to a scalar; None for `none`.

    `lpips` and `convnext` read the safetensors file `path`, by default the one that `prologue weights` writes; their
    classes list its tensors. `lite0` has its own weights.

    Raises:
        ConfigError: there is no weight file.
        CheckpointError: a tensor of the file is missing, unexpected or of another shape.
        MissingExtraError: the extra [lite0] is not installed.
    """
    if kind == "none":
        return None
    if kind == "lite0":
        return Lite0Features()
    module: PerceptualLoss
    if kind == "lpips":
        with torch.device("meta"):
            module = Lpips()
    elif kind == "convnext":
        with torch.device("meta"):
            module = ConvNeXtLogits()
    else:
        raise ConfigError(f"unknown perceptual loss {kind!r}: choose none, lpips, convnext or lite0")
    if path is None and not place(kind).is_file():
        raise ConfigError(
            f"the perceptual loss {kind!r} needs a weight file: run `prologue weights {kind}`, which writes "
            f"{place(kind)} from the published weights, or set tokenizer_training.perceptual_path to a safetensors "
            "file, or tokenizer_training.perceptual to lite0 or none"
        )
    return module.load(Path(path) if path is not None else place(kind))


class PerceptualLoss(nn.Module):
    """A frozen network that compares images; always in eval mode."""

    def forward(self, reconstruction: Images, image: Images) -> Float[Tensor, ""]:
        """Scalar, averaged over the batch."""
        raise NotImplementedError

    def load(self, path: Path) -> Self:
        """Read all parameters from a safetensors file and freeze them; returns itself."""
        tensors = read_tensors(path)
        self.to_empty(device="cpu")
        load_exactly(self, tensors, str(path))
        return self.freeze()

    def freeze(self) -> Self:
        """Stop gradients of all parameters; returns itself."""
        self.requires_grad_(False)
        self.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)


def _normalise(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """`(images - mean) / std` per channel, in fp32. The constants are not tensors, because a copy to a GPU would wait
    for it."""
    channels = zip(images.float().unbind(1), mean, std, strict=True)
    return torch.stack([(channel - m) / s for channel, m, s in channels], dim=1)


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Normalise over the channels, in fp32; a zero vector stays zero and has a finite gradient."""
    features = features.float()
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + _LPIPS_EPS)


class Lpips(PerceptualLoss):
    """LPIPS version 0.1 of Zhang et al. (2018) with VGG-16: weighted squared differences of normalised features.

    `channels` and `convolutions` are the sizes of the five stages; the defaults are VGG-16. The weight file has
    `features.{i}.weight` (out, in, 3, 3) and `features.{i}.bias` of torchvision's `vgg16().state_dict()`, where `i` is
    one of 0 2 5 7 10 12 14 17 19 21 24 26 28, and `lin{k}.weight` (1, C, 1, 1) for `k` in 0…4, which the `lpips`
    package calls `lin{k}.model.1.weight`. `prologue weights lpips` writes it.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 128, 256, 512, 512),
        convolutions: tuple[int, ...] = (2, 2, 3, 3, 3),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        width = 3
        for stage, (wider, count) in enumerate(zip(channels, convolutions, strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
                width = wider
            self.taps.append(len(layers) - 1)
            setattr(self, f"lin{stage}", nn.Conv2d(wider, 1, 1, bias=False))
        self.features = nn.Sequential(*layers)

    def forward(self, reconstruction: Images, image: Images) -> Float[Tensor, ""]:
        smallest = 2 ** (len(self.taps) - 1)
        if min(image.shape[-2:]) < smallest:
            raise ConfigError(
                f"LPIPS compares images of at least {smallest} px, not {image.shape[-2]}x{image.shape[-1]}: "
                "set tokenizer_training.perceptual to none or choose a larger tokenizer.image_size"
            )
        with torch.no_grad():
            targets = self._stages(image)
        total = reconstruction.new_zeros((), dtype=torch.float32)
        for stage, (ours, theirs) in enumerate(zip(self._stages(reconstruction), targets, strict=True)):
            weight: Tensor = getattr(self, f"lin{stage}").weight
            squared = (_unit(ours) - _unit(theirs)).square()
            total = total + (squared * weight.float()).sum(1).mean()
        return total

    def _stages(self, images: Images) -> list[Tensor]:
        x = _normalise(images, _LPIPS_SHIFT, _LPIPS_SCALE)
        found: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class ConvNeXtLogits(PerceptualLoss):
    """Mean squared difference of the logits of a ConvNeXt classifier; the default sizes are ConvNeXt-S on ImageNet-1k.

    The weight file has all tensors of torchvision's `convnext_small().state_dict()`; `prologue weights convnext` writes
    it. Images are mapped to [0, 1] without a clamp, resized to 224 (bilinear, antialiased) and normalised with
    ImageNet's mean and deviation (METHOD §7).
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 3, 27, 3),
        widths: tuple[int, ...] = (96, 192, 384, 768),
        classes: int = 1000,
        resolution: int = 224,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.net = ConvNeXt(depths, widths, classes)

    def load(self, path: Path) -> Self:
        self.net.to_empty(device="cpu")
        load_exactly(self.net, read_tensors(path), str(path))
        return self.freeze()

    def forward(self, reconstruction: Images, image: Images) -> Float[Tensor, ""]:
        with torch.no_grad():
            target = self.logits(image)
        return F.mse_loss(self.logits(reconstruction).float(), target.float())

    def logits(self, images: Images) -> Float[Tensor, "b classes"]:
        """Class logits of images in model range."""
        x = (images.float() + 1) / 2
        x = F.interpolate(x, (self.resolution, self.resolution), mode="bilinear", antialias=True, align_corners=False)
        logits: Tensor = self.net(_normalise(x, _IMAGENET_MEAN, _IMAGENET_STD))
        return logits


class Lite0Features(PerceptualLoss):
    """Mean squared difference of normalised EfficientNet-Lite0 features at five depths; not part of the paper.

    Each side is resized to twice its length, rounded to a multiple of 32 in [64, 224]. For images of 32 px this costs a
    twelfth of the network's own 224 px, and every map still has several positions. Reports must mark a run with this
    loss, since FD-Lite0 measures distances of the same features.
    """

    AFTER = (0, 2, 4, 10, 15)
    """Blocks whose outputs are compared: strides 2, 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Lite0()
        self.freeze()

    @staticmethod
    def working_size(side: int) -> int:
        """Side in pixels to which a side of `side` pixels is resized."""
        return min(224, max(64, round(2 * side / 32) * 32))

    def forward(self, reconstruction: Images, image: Images) -> Float[Tensor, ""]:
        with torch.no_grad():
            targets = self._maps(image)
        terms = [
            (_unit(ours) - _unit(theirs)).square().sum(1).mean()
            for ours, theirs in zip(self._maps(reconstruction), targets, strict=True)
        ]
        return torch.stack(terms).mean()

    def _maps(self, images: Images) -> list[Tensor]:
        height, width = images.shape[-2:]
        return self.net.maps(resize(images.float(), (self.working_size(height), self.working_size(width))), self.AFTER)
