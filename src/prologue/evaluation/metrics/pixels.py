"""PSNR and SSIM of each reconstruction, on uint8 pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from prologue.errors import EvaluationError

Pixels = UInt8[Tensor, "b 3 h w"]
_RANGE = 255.0
_SSIM_REACH = 5
"""Pixels that the 11 px window of SSIM mirrors at each border."""


def psnr(reconstructions: Pixels, images: Pixels) -> Float64[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 255.

    For an exact reconstruction it is that of the smallest error, one value by one level, instead of infinity.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = _checked(reconstructions, images)
    values: Tensor = peak_signal_noise_ratio(a, b, data_range=_RANGE, reduction="none", dim=(1, 2, 3))
    ceiling = 10 * torch.log10(torch.tensor(_RANGE**2 * a[0].numel(), dtype=torch.float64))
    return values.clamp_max(ceiling)


def ssim(reconstructions: Pixels, images: Pixels) -> Float64[Tensor, " b"]:
    """Structural similarity of each image (Gaussian window of deviation 1.5 px, data range 255)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _checked(reconstructions, images)
    if min(a.shape[-2:]) <= _SSIM_REACH:
        raise EvaluationError(f"SSIM needs images of more than {_SSIM_REACH} px, not {a.shape[-2]}x{a.shape[-1]}")
    values: Tensor = structural_similarity_index_measure(a, b, data_range=_RANGE, reduction="none")
    return values


def _checked(reconstructions: Pixels, images: Pixels) -> tuple[Float64[Tensor, "b 3 h w"], Float64[Tensor, "b 3 h w"]]:
    if reconstructions.dtype != torch.uint8 or images.dtype != torch.uint8:
        raise EvaluationError(f"PSNR and SSIM need uint8 pixels, not {reconstructions.dtype} and {images.dtype}")
    if reconstructions.shape != images.shape or not len(images):
        raise EvaluationError(
            f"PSNR and SSIM need pairs of one size, not {tuple(reconstructions.shape)} and {tuple(images.shape)}"
        )
    return reconstructions.to("cpu", torch.float64), images.to("cpu", torch.float64)
