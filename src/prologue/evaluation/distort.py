"""Mild distortions of real images, so that a classifier judges slightly blurred or tinted generated images fairly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_REACH = 3
"""Pixels to each side that the blur's kernel covers."""


def distort(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Small moves and stretches, blur on half of the images, tint and noise; in and out in model range.

    Every image has its own draw. All draws come from `generator`, on the CPU.
    """
    draws = torch.rand(images.shape[0], 12, generator=generator)
    moved = _move(images, 2 * draws[:, :4] - 1)
    # Deviations 0 to 1.2 px at 32 px, 0 for half of the images.
    blurred = _blur(moved, (2.4 * draws[:, 4] - 1.2).clamp_min(0) * images.shape[-1] / 32)
    gain, shift = 0.8 + 0.4 * draws[:, 5:6], 0.16 * draws[:, 6:9] - 0.08
    tinted = blurred * gain[:, :, None, None] + shift[:, :, None, None]
    deviation = 0.1 * draws[:, 9] * draws[:, 10]
    noise = torch.randn(images.shape, generator=generator) * deviation[:, None, None, None]
    return (tinted + noise).clamp(-1, 1)


def _move(images: Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b 4"]) -> Float[Tensor, "b 3 h w"]:
    """Shift by up to a twelfth of each side, and zoom each axis by up to an eighth; the border is repeated."""
    theta = images.new_zeros(images.shape[0], 2, 3)
    theta[:, 0, 0] = 1 + draws[:, 0] / 8
    theta[:, 1, 1] = 1 + draws[:, 0] / 8 + draws[:, 1] / 16
    theta[:, :, 2] = draws[:, 2:4] / 6
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _blur(images: Float[Tensor, "b 3 h w"], deviation: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur, each image with its own deviation in pixels; 0 changes nothing."""
    offsets = torch.arange(-_REACH, _REACH + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation.clamp_min(1e-3)[:, None]).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    batch, channels, height, width = images.shape
    weight = kernel.repeat_interleave(channels, 0)
    stacked = images.reshape(1, batch * channels, height, width)
    for axis in (2, 3):
        pad = [0, 0, _REACH, _REACH] if axis == 2 else [_REACH, _REACH, 0, 0]
        shape = (-1, 1, 2 * _REACH + 1, 1) if axis == 2 else (-1, 1, 1, 2 * _REACH + 1)
        stacked = F.conv2d(F.pad(stacked, pad, mode="reflect"), weight.view(shape), groups=batch * channels)
    return stacked.reshape(batch, channels, height, width)
