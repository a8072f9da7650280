"""Tokens that are known before sampling, at any positions. Inpainting, variation and mixing use them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prologue.errors import SamplingError
from prologue.models.sequence import SequenceLayout, TokenIds


class Known:
    """Tokens that are known at the positions where the masks are true. Other positions are drawn; their ids are
    ignored.

    A known token costs no draw. The prior reads it as it is, and the drawn tokens after it depend on it.

    Args:
        prologue: bool mask (B, P); (P,) applies to all images, a single bool to all positions.
        visual: the same for the visual tokens, (B, N) in row-major order of the grid.

    Raises:
        SamplingError: a mask is not bool or has another shape.
    """

    def __init__(self, tokens: TokenIds, prologue: Tensor | bool = True, visual: Tensor | bool = False) -> None:
        if not isinstance(tokens, TokenIds):
            raise SamplingError(f"known tokens are TokenIds, not {type(tokens).__name__}")
        self.tokens = tokens
        self.prologue = _mask("prologue", prologue, tokens.prologue)
        self.visual = _mask("visual", visual, tokens.visual)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | Tensor) -> Known:
        return Known(self.tokens[index], self.prologue[index], self.visual[index])

    def to(self, device: torch.device | str) -> Known:
        return Known(self.tokens.to(device), self.prologue.to(device), self.visual.to(device))

    def pack(self, layout: SequenceLayout) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Ids in the prior's vocabulary, and the mask of known positions, which include EOS.

        Raises:
            SamplingError: the tokens do not fit the layout.
        """
        prologue, visual = self.prologue[:, : layout.prologue_tokens], self.visual
        tokens = layout.kept(TokenIds(self.tokens.prologue * self.prologue, self.tokens.visual * self.visual))
        eos = visual.new_ones(len(visual), layout.visual_start - layout.prologue_tokens)
        return layout.pack(tokens), torch.cat([prologue, eos, visual], dim=1)


def _mask(name: str, given: Any, ids: Any) -> Bool[Tensor, "B L"]:
    if not isinstance(ids, Tensor):
        raise SamplingError(f"{name} ids are an int64 tensor, not {type(ids).__name__}")
    mask = torch.as_tensor(given, device=ids.device)
    if mask.dtype != torch.bool:
        raise SamplingError(f"the {name} mask is a bool tensor, not {mask.dtype}")
    try:
        return mask.broadcast_to(ids.shape)
    except RuntimeError as error:
        raise SamplingError(
            f"the {name} mask has shape {tuple(mask.shape)}, which does not fit ids of shape {tuple(ids.shape)}"
        ) from error
