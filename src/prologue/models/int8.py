"""Weight-only int8: linear layers with int8 weights and one scale for each output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prologue.models.layers import Linear
from prologue.utils.private_api import int8_product

_WHOLE = 32
"""Block size of the CPU kernel. The kernel reads past the end of a row whose length is not a multiple of it."""


class Int8Linear(nn.Module):
    """`x @ (weight · scale)ᵀ + bias` with the weights of a trained layer in int8; it cannot be trained.

    The scale of an output is its largest absolute weight over 127; weights are rounded to the nearest step. Activations
    keep the dtype of `scale`.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        wide = linear.weight.detach().float()
        scale = wide.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        # The scale is rounded to its stored dtype first, so that weights are rounded with the scale that is used.
        scale = scale.to(dtype)
        whole = (wide / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", whole.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = self.rows(x, 0, None)
        return y if self.bias is None else y + self.bias

    def rows(self, x: Tensor, first: int, last: int | None) -> Tensor:
        """Outputs `first:last`, without the bias."""
        weight, scale = self.weight[first:last], self.scale[first:last]
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[-1] % _WHOLE == 0:
            return int8_product(x.reshape(-1, x.shape[-1]), weight, scale).view(*x.shape[:-1], -1)
        scaled: Tensor = F.linear(x, weight.to(x.dtype)) * scale
        return scaled


def quantize_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every `Linear` in `module` by an `Int8Linear`, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, Linear):
            setattr(module, name, Int8Linear(child, dtype))
        else:
            quantize_linears(child, dtype)


def has_int8(module: nn.Module) -> bool:
    """Whether any layer of `module` has int8 weights."""
    return any(isinstance(child, Int8Linear) for child in module.modules())
