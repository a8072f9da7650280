"""The PatchGAN discriminator of pix2pix: one logit, real or fake, for each overlapping patch (METHOD §7)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prologue.errors import ConfigError

SMALLEST_IMAGE = 24
"""Shortest image side in pixels: three strided layers leave 3 pixels, and each of the last two convolutions removes
one."""
_STRIDES = (2, 2, 1)
"""Strides of the convolutions between the first, which has stride 2, and the last, which has stride 1."""


class PatchDiscriminator(nn.Module):
    """4×4 convolutions with batch norm and leaky ReLU (METHOD §7), from (B, 3, H, W) in model range to logits
    (B, 1, h, w), 30×30 for 256 px.

    Weights are drawn from N(0, 0.02) and batch norm scales from N(1, 0.02), all from `generator`; biases start at 0. A
    convolution before a batch norm has no bias, because the norm would remove it.

    Raises:
        ConfigError: an image is smaller than `SMALLEST_IMAGE`.
    """

    def __init__(self, channels: int = 64, *, generator: torch.Generator) -> None:
        super().__init__()
        # On the meta device the default initialisation does not use the global generator.
        with torch.device("meta"):
            self.net = _build(channels)
        self.to_empty(device=generator.device)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights again."""
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0.0, 0.02, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.weight.normal_(1.0, 0.02, generator=generator)
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
                module.bias.zero_()

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 rows columns"]:
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST_IMAGE:
            raise ConfigError(
                f"the discriminator needs images of at least {SMALLEST_IMAGE} px, not {height}x{width}: "
                "choose a larger tokenizer.image_size, or set tokenizer_training.gan to 0"
            )
        logits: Tensor = self.net(images)
        return logits


def _build(channels: int) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    width = channels
    for stride in _STRIDES:
        convolution = nn.Conv2d(width, 2 * width, 4, stride=stride, padding=1, bias=False)
        modules += [convolution, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        width *= 2
    modules.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
    return nn.Sequential(*modules)
