"""The layout of a prior's sequence: the only place that knows offsets, EOS, segments, masks and length (METHOD §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prologue.config import LayoutConfig, TokenizerConfig
from prologue.errors import SamplingError


@dataclass(frozen=True)
class TokenIds:
    """Ids of B images, int64: `prologue` (B, P) and `visual` (B, N), each from 0 in its own codebook. P may be 0."""

    prologue: Int[Tensor, "B P"]
    visual: Int[Tensor, "B N"]

    def __len__(self) -> int:
        return self.visual.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Self:
        return type(self)(self.prologue[index], self.visual[index])

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.prologue.to(device), self.visual.to(device))

    def without_prologue(self) -> Self:
        """The visual ids alone, for a P = 0 prior."""
        return type(self)(self.prologue[:, :0], self.visual)

    @classmethod
    def cat(cls, parts: list[TokenIds]) -> Self:
        return cls(torch.cat([p.prologue for p in parts]), torch.cat([p.visual for p in parts]))


def check_ids(ids: Any, name: str, count: int, size: int) -> None:
    """Raise `SamplingError` unless `ids` is an integer tensor (B, `count`) with ids in 0…`size` − 1."""
    if not isinstance(ids, Tensor):
        hint = "give its .visual" if isinstance(ids, TokenIds) else "torch.as_tensor converts an array or a list"
        raise SamplingError(f"{name} ids are an int64 tensor (B, {count}), not {type(ids).__name__}: {hint}")
    if ids.dtype not in _INTEGERS:
        raise SamplingError(f"{name} ids are int64, not {ids.dtype}")
    if ids.ndim != 2 or ids.shape[1] != count:
        raise SamplingError(f"expected {count} {name} ids per image, got shape {tuple(ids.shape)}")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
        bad = ids[(ids < 0) | (ids >= size)][0]
        raise SamplingError(f"{name} id {int(bad)} lies outside its codebook 0…{size - 1}")


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Segment:
    """Target positions `start:stop` whose ids lie in `first_id:last_id`; both ends are exclusive."""

    name: str
    start: int
    stop: int
    first_id: int
    last_id: int

    @property
    def forced(self) -> bool:
        """Whether only one id is allowed."""
        return self.last_id - self.first_id == 1


class SequenceLayout:
    """Targets `[prologue (P), EOS, visual (N)]`. With P = 0 there are only the visual ids, without EOS.

    Vocabulary: visual ids `0…K−1`, prologue ids `K…K+K_p−1`, EOS `K+K_p`. Source: METHOD §6.
    """

    def __init__(self, config: LayoutConfig) -> None:
        self.config = config
        self.prologue_tokens = config.prologue_tokens
        self.visual_tokens = config.visual_tokens
        self.prologue_offset = config.visual_codebook_size
        self.has_prologue = config.prologue_tokens > 0
        self.eos_id = config.visual_codebook_size + config.prologue_codebook_size
        self.vocabulary = self.eos_id + 1 if self.has_prologue else config.visual_codebook_size
        self.visual_start = config.prologue_tokens + 1 if self.has_prologue else 0
        """Target position of the first visual token."""
        self.length = self.visual_start + config.visual_tokens
        """T, the number of targets, and of inputs: BOS and all targets but the last."""
        visual = Segment("visual", self.visual_start, self.length, 0, config.visual_codebook_size)
        prologue = Segment("prologue", 0, config.prologue_tokens, self.prologue_offset, self.eos_id)
        eos = Segment("eos", config.prologue_tokens, self.visual_start, self.eos_id, self.eos_id + 1)
        self.segments: tuple[Segment, ...] = (prologue, eos, visual) if self.has_prologue else (visual,)

    @classmethod
    def of(cls, tokenizer: TokenizerConfig, prologue: bool = True) -> SequenceLayout:
        """The layout of a tokenizer's sequences; `prologue=False` leaves the prologue out."""
        kept = prologue and tokenizer.prologue_tokens > 0
        return cls(
            LayoutConfig(
                prologue_tokens=tokenizer.prologue_tokens if kept else 0,
                prologue_codebook_size=tokenizer.prologue_codebook_size if kept else 0,
                visual_tokens=tokenizer.visual_tokens,
                visual_codebook_size=tokenizer.codebook_size,
            )
        )

    def segment(self, step: int) -> Segment:
        """The segment of target position `step`."""
        for segment in self.segments:
            if segment.start <= step < segment.stop:
                return segment
        raise IndexError(f"step {step} outside the {self.length} target positions")

    def kept(self, tokens: TokenIds) -> TokenIds:
        """The ids of a tokenizer that belong to this layout. Without a prologue these are the visual ids alone."""
        return tokens if self.has_prologue else tokens.without_prologue()

    def pack(self, tokens: TokenIds) -> Int[Tensor, "B T"]:
        """Ids of the prior's vocabulary, with EOS. A wrong number of ids or an id outside its codebook is an error."""
        self.check(tokens)
        return self.join(tokens)

    def join(self, tokens: TokenIds) -> Int[Tensor, "B T"]:
        """`pack` without the check, which waits for the device."""
        visual = tokens.visual.long()
        return torch.cat([self.pack_prologue(tokens.prologue), visual], dim=1) if self.has_prologue else visual

    def pack_prologue(self, prologue: Int[Tensor, "B P"]) -> Int[Tensor, "B P+1"]:
        """Prologue ids and EOS in the prior's vocabulary. They are given if only the visual segment is sampled."""
        eos = torch.full((len(prologue), 1), self.eos_id, dtype=torch.int64, device=prologue.device)
        return torch.cat([prologue.long() + self.prologue_offset, eos], dim=1)

    def unpack(self, sequence: Int[Tensor, "B T"]) -> TokenIds:
        """The inverse of `pack`."""
        if sequence.ndim != 2 or sequence.shape[1] != self.length:
            raise SamplingError(f"a sequence must have {self.length} ids per image, not shape {tuple(sequence.shape)}")
        prologue = sequence[:, : self.prologue_tokens] - self.prologue_offset
        tokens = TokenIds(prologue, sequence[:, self.visual_start :])
        if self.has_prologue and bool((sequence[:, self.prologue_tokens] != self.eos_id).any()):
            raise SamplingError(f"position {self.prologue_tokens} of a sequence must be EOS ({self.eos_id})")
        self.check(tokens)
        return tokens

    def inputs(self, sequence: Int[Tensor, "B T"], visual_dropout: Bool[Tensor, " B"] | None = None) -> Tensor:
        """Token inputs after BOS, (B, T−1): all targets but the last, with EOS for dropped visual ids."""
        inputs = sequence[:, :-1]
        if visual_dropout is None or not self.has_prologue:
            return inputs
        dropped = visual_dropout[:, None] & (torch.arange(self.length - 1, device=inputs.device) >= self.visual_start)
        return inputs.masked_fill(dropped, self.eos_id)

    def place_prologue(self, inputs: Float[Tensor, "B L D"], prologue: Float[Tensor, "B P D"]) -> Tensor:
        """Vectors of the inputs after BOS, in which the vectors of the prologue are replaced."""
        return torch.cat([prologue, inputs[:, self.prologue_tokens :]], dim=1)

    def split_inputs(self, values: Float[Tensor, "... T"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values of all inputs, split into BOS, prologue, EOS and visual tokens."""
        sizes = [1, self.prologue_tokens, int(self.has_prologue), self.visual_tokens - 1]
        bos, prologue, eos, visual = torch.split(values, sizes, dim=-1)
        return bos, prologue, eos, visual

    def by_segment(self, values: Float[Tensor, "B T"], sequence: Int[Tensor, "B T"]) -> dict[str, Tensor]:
        """Sums (B,) of one value per target over `prologue`, `eos` and `visual`; 0 for an absent segment."""
        sums = {segment.name: values[:, segment.start : segment.stop].sum(1) for segment in self.segments}
        return {name: sums.get(name, values.new_zeros(len(sequence))) for name in ("prologue", "eos", "visual")}

    def check(self, tokens: TokenIds) -> None:
        """Raise `SamplingError` unless the numbers of ids and the ids fit this layout."""
        check_ids(tokens.prologue, "prologue", self.prologue_tokens, self.config.prologue_codebook_size)
        check_ids(tokens.visual, "visual", self.visual_tokens, self.config.visual_codebook_size)
        if len(tokens.prologue) != len(tokens.visual):
            raise SamplingError(
                f"prologue ids of {len(tokens.prologue)} images and visual ids of {len(tokens.visual)} do not fit: "
                "pass both for each image"
            )

    def allowed(self, device: torch.device | str = "cpu") -> Bool[Tensor, "T V"]:
        """A mask that is true if an id is allowed at a target position."""
        mask = torch.zeros(self.length, self.vocabulary, dtype=torch.bool, device=device)
        for segment in self.segments:
            mask[segment.start : segment.stop, segment.first_id : segment.last_id] = True
        return mask
