"""The interface of a quantizer to the tokenizer and its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """Training output of a quantizer for features (B, T, D); R is its `ids_per_position`.

    `ids` (B, T·R) int64; `z` (B, T, d), the vectors that were quantized; `codes` (B, T, d), straight-through, the
    input of the decoder; `one_hot` (B, T·R, K), straight-through, or None; `loss`, a scalar, 0 without a loss.
    """

    ids: Int[Tensor, "B TR"]
    z: Float[Tensor, "B T d"]
    codes: Float[Tensor, "B T d"]
    one_hot: Float[Tensor, "B TR K"] | None
    loss: Float[Tensor, ""]

    @classmethod
    def cat(cls, parts: Sequence[Quantized]) -> Quantized:
        """Concatenate outputs along the batch, without gradients and one-hots; the loss is the mean."""
        ids, z, codes = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("ids", "z", "codes"))
        return cls(ids, z, codes, None, torch.stack([part.loss.detach() for part in parts]).mean())


class Rows(NamedTuple):
    """New values for some rows of a parameter. The learner also resets their EMA copies and optimizer moments."""

    parameter: str
    """Name within the quantizer, such as `codebook`."""
    rows: Int[Tensor, " n"]
    values: Float[Tensor, "n d"]


class Quantizer(nn.Module):
    """Turns features into ids and ids into codes. A subclass implements `size`, `forward`, `encode` and `codes`.

    The constructor receives `width` (D), `code_dim` (d) and `size` (K) from the tokenizer's configuration, a prologue
    quantizer also `temperature`, and then the user's options. Weights must be set in `initialise(generator)`, which
    every submodule may have: construction draws no random number.
    """

    ids_per_position: int = 1
    """R, the number of ids of one position. They are adjacent in the sequence of ids. The configuration of a quantizer
    with more than one states the same number in its option `ids_per_position`."""

    @property
    def size(self) -> int:
        """K, the number of ids."""
        raise NotImplementedError

    def forward(self, h: Float[Tensor, "B T D"]) -> Quantized:
        """The training output. A prologue quantizer must give `one_hot`."""
        raise NotImplementedError

    def encode(self, h: Float[Tensor, "B T D"]) -> Int[Tensor, "B TR"]:
        """The ids of features."""
        raise NotImplementedError

    def codes(self, ids: Int[Tensor, "B TR"]) -> Float[Tensor, "B T d"]:
        """The codes of ids."""
        raise NotImplementedError

    def start_from(self, z: Float[Tensor, "n d"], generator: torch.Generator) -> Sequence[Rows]:
        """Start the codebook from vectors `z`. Without a codebook the result is empty."""
        return ()

    def reset_unused(
        self, z: Float[Tensor, "B T d"], counts: Int[Tensor, " K"], generator: torch.Generator
    ) -> Sequence[Rows]:
        """Reset the codes whose count is 0 to vectors of `z`. Without a codebook the result is empty.

        `counts` is on the host and `z` on the device, so that nothing waits for the device.
        """
        return ()
