"""The ConvNeXt classifier of Liu et al. (2022), under torchvision's tensor names (METHOD §7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class Block(nn.Module):
    """`x + layer_scale · mlp(norm(depthwise 7x7(x)))`. The keys of `block` are those of torchvision, which also counts
    two permutes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.block = nn.ModuleDict(
            {
                "0": nn.Conv2d(width, width, 7, padding=3, groups=width),
                "2": nn.LayerNorm(width, eps=_EPS),
                "3": nn.Linear(width, 4 * width),
                "5": nn.Linear(4 * width, width),
            }
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.block["0"](x).permute(0, 2, 3, 1)
        y = self.block["5"](F.gelu(self.block["3"](self.block["2"](y))))
        out: Tensor = x + self.layer_scale * y.permute(0, 3, 1, 2)
        return out


class ConvNeXt(nn.Module):
    """Normalised images to logits. `features` alternates downsampling layers and stages of blocks."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for depth, width in zip(depths, widths, strict=True):
            if layers:
                layers.append(nn.Sequential(ChannelNorm(before, eps=_EPS), nn.Conv2d(before, width, 2, stride=2)))
            else:
                layers.append(nn.Sequential(nn.Conv2d(3, width, 4, stride=4), ChannelNorm(width, eps=_EPS)))
            layers.append(nn.Sequential(*(Block(width) for _ in range(depth))))
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.ModuleDict({"0": ChannelNorm(before, eps=_EPS), "2": nn.Linear(before, classes)})

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        pooled = self.features(images).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier["2"](self.classifier["0"](pooled).flatten(1))
        return logits
