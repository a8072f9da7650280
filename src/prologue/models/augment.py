"""Differentiable augmentation of real and fake images for the discriminator: colour, translation and cutout.

Source: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (2020). The paper does not use it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SHIFT = 1 / 8
"""Largest translation, as a fraction of each side."""
_HOLE = 1 / 2
"""Size of the cut-out rectangle, as a fraction of each side."""


def augment(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Random brightness, saturation, contrast, translation and cutout, with one draw for each image.

    Images are in model range. Pixels that are moved in or cut out are 0, which is mid-grey. Gradients reach `images`. A
    generator in the same state, on any device, gives the same transform.
    """
    colour = _uniform(images, generator, 3)
    place = _uniform(images, generator, 4)
    images = _recolour(images, colour[:, 0] - 0.5, colour[:, 1] * 2, colour[:, 2] + 0.5)
    return _cut_out(_translate(images, place[:, :2]), place[:, 2:])


def _uniform(images: Tensor, generator: torch.Generator, count: int) -> Float[Tensor, "b {count}"]:
    draws = torch.rand(images.shape[0], count, generator=generator, device=generator.device)
    return draws.to(images.device)


def _recolour(
    images: Float[Tensor, "b 3 h w"],
    brightness: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"],
    contrast: Float[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """Add `brightness`, then scale by `saturation` around each pixel's grey and by `contrast` around the image mean."""
    brightness, saturation, contrast = (
        factor.to(images.dtype)[:, None, None, None] for factor in (brightness, saturation, contrast)
    )
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast


def _steps(draws: Float[Tensor, " b"], low: int, high: int) -> Int[Tensor, " b"]:
    """Integers uniform in [low, high] from draws in [0, 1)."""
    return (low + (draws * (high - low + 1)).long()).clamp_max(high)


def _translate(images: Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b 2"]) -> Float[Tensor, "b 3 h w"]:
    for axis in (2, 3):
        size = images.shape[axis]
        reach = round(size * _SHIFT)
        shift = _steps(draws[:, axis - 2], -reach, reach)
        source = torch.arange(size, device=images.device)[None] - shift[:, None]
        view = [-1, 1, size, 1] if axis == 2 else [-1, 1, 1, size]
        inside = ((source >= 0) & (source < size)).view(view)
        index = source.clamp(0, size - 1).view(view).expand_as(images)
        # Clamped source pixels are read more than once, but the mask makes their gradient exactly 0.
        images = images.gather(axis, index) * inside.to(images.dtype)
    return images


def _cut_out(images: Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b 2"]) -> Float[Tensor, "b 3 h w"]:
    """Set one rectangle of each image to 0. Its centre lies anywhere in the image, so that it may cross the edge."""
    hit: list[Tensor] = []
    for axis in (2, 3):
        size = images.shape[axis]
        hole = round(size * _HOLE)
        start = _steps(draws[:, axis - 2], 0, size - 1) - hole // 2
        position = torch.arange(size, device=images.device)[None] - start[:, None]
        hit.append((position >= 0) & (position < hole))
    keep = ~(hit[0][:, None, :, None] & hit[1][:, None, None, :])
    return images * keep.to(images.dtype)
