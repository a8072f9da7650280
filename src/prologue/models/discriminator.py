"""The PatchGAN discriminator of pix2pix: one real-or-fake logit for every overlapping patch of an image (METHOD §7)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prologue.errors import ConfigError

_WIDEST = 8
"""Channels stop doubling at this multiple of the first layer's."""


def smallest_image(layers: int = 3) -> int:
    """Shortest image side in pixels: `layers` halvings leave 3, and the two convolutions after them take one each."""
    return 3 << layers


def check_image_size(height: int, width: int, layers: int = 3) -> None:
    """Raise `ConfigError` for images that the discriminator cannot judge (24 px with three strided layers)."""
    smallest = smallest_image(layers)
    if min(height, width) < smallest:
        raise ConfigError(
            f"the discriminator judges images of at least {smallest} px, not {height}x{width}: "
            "choose a larger tokenizer.image_size, or turn it off with tokenizer_training.gan 0"
        )


class PatchDiscriminator(nn.Module):
    """Logits of 4x4 convolutions with batch norm and leaky ReLU (METHOD §7).

    `layers` strided convolutions, of which the first has no norm, then one of stride 1, then one to a single channel.
    Weights are drawn from N(0, 0.02), batch norm scales from N(1, 0.02); biases start at 0. All draws come from
    `generator`. A convolution before a batch norm has no bias, because the norm would remove it.

    Input (B, 3, H, W) in model range; output (B, 1, h, w) logits, 30 x 30 for 256 px. Images below
    `smallest_image(layers)` raise `ConfigError`.
    """

    def __init__(self, channels: int = 64, layers: int = 3, *, generator: torch.Generator) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise ConfigError(f"the discriminator needs channels and layers >= 1, not {channels} and {layers}")
        self.layers = layers
        # Built without storage, so that the default initialisation draws nothing from the global generator.
        with torch.device("meta"):
            self.net = _build(channels, layers)
        self.to_empty(device=generator.device)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew from `generator`."""
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0.0, 0.02, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.weight.normal_(1.0, 0.02, generator=generator)
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
                module.bias.zero_()

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 rows columns"]:
        check_image_size(images.shape[-2], images.shape[-1], self.layers)
        logits: Tensor = self.net(images)
        return logits


def _build(channels: int, layers: int) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    width = channels
    for index in range(1, layers + 1):
        wider = channels * min(2**index, _WIDEST)
        stride = 2 if index < layers else 1
        modules += [
            nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.LeakyReLU(0.2),
        ]
        width = wider
    modules.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
    return nn.Sequential(*modules)
