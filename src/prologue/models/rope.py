"""Rotary position embedding over three axes, with a base theta per token (METHOD §3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PATCH_THETA = 2000.0
INDEX_THETA = 10000.0

RopeTable = tuple[Tensor, Tensor]
"""cos and sin, each (T, head_dim/2), fp32."""


class Positions:
    """Three coordinates and a theta per token, float64 on the CPU."""

    def __init__(self, coordinates: Float[Tensor, "T 3"], theta: Float[Tensor, " T"]) -> None:
        self.coordinates = coordinates
        self.theta = theta

    @classmethod
    def patches(cls, grid: tuple[int, int]) -> Positions:
        """(row, column, 0) in row-major order, theta 2000."""
        rows, columns = grid
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        coordinates = torch.stack([row, column, torch.zeros_like(row)], dim=-1).reshape(-1, 3).double()
        return cls(coordinates, torch.full((rows * columns,), PATCH_THETA, dtype=torch.float64))

    @classmethod
    def indices(cls, count: int, axis: int = 2) -> Positions:
        """The token's index on one axis, 0 on the other axes, theta 10000."""
        coordinates = torch.zeros(count, 3, dtype=torch.float64)
        coordinates[:, axis] = torch.arange(count)
        return cls(coordinates, torch.full((count,), INDEX_THETA, dtype=torch.float64))

    def __add__(self, other: Positions) -> Positions:
        return Positions(
            torch.cat([self.coordinates, other.coordinates]),
            torch.cat([self.theta, other.theta]),
        )

    def table(self, axes: tuple[int, int, int]) -> RopeTable:
        """cos and sin of the angle of every pair; axis `i` has the frequencies `theta^(-2j/axes[i])`, j < axes[i]/2."""
        angles = []
        for axis, dims in enumerate(axes):
            exponent = torch.arange(0, dims, 2, dtype=torch.float64) / max(dims, 1)
            frequency = self.theta[:, None] ** -exponent
            angles.append(self.coordinates[:, axis, None] * frequency)
        angle = torch.cat(angles, dim=1)
        return angle.cos().float(), angle.sin().float()


def rotate(x: Float[Tensor, "B T ... d"], cos: Float[Tensor, "T d2"], sin: Float[Tensor, "T d2"]) -> Tensor:
    """Rotate the interleaved pairs `(x0,x1),(x2,x3)…` of each head, in fp32; the result has the dtype of `x`."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    shape = (len(cos), *(1,) * (x.ndim - 3), cos.shape[1])
    cos, sin = cos.view(shape), sin.view(shape)
    if torch.compiler.is_compiling() or x.device.type == "mps":
        even, odd = pairs.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:
        # The product of complex numbers takes one pass instead of six. A compiler fuses the real form.
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).to(x.dtype)
