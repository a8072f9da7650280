"""Images as a few large pixels, which keep the places of light, colour and large parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor

from prologue.errors import EvaluationError

SIDE = 8
"""Rows and columns of a coarse image."""


def coarse_pixels(images: UInt8[Tensor, "b 3 h w"]) -> Float64[Tensor, "b d"]:
    """Mean colours of 8 × 8 fields, 0…255, flattened, on the CPU. Images other than uint8 are an `EvaluationError`."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise EvaluationError(f"coarse pixels need uint8 images (b, 3, h, w), not {images.dtype} {tuple(images.shape)}")
    return F.adaptive_avg_pool2d(images.to("cpu", torch.float64), SIDE).flatten(1)
