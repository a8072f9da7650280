"""Offsets, EOS, segments and masks of the one place that knows them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prologue.config import LayoutConfig
from prologue.errors import SamplingError
from prologue.models.sequence import SequenceLayout, TokenIds

LAYOUT = SequenceLayout(
    LayoutConfig(prologue_tokens=2, prologue_codebook_size=8, visual_tokens=3, visual_codebook_size=16)
)
PLAIN = SequenceLayout(LayoutConfig(0, 0, 3, 16))
TOKENS = TokenIds(torch.tensor([[0, 7]]), torch.tensor([[15, 0, 3]]))


@st.composite
def layouts_and_tokens(draw: st.DrawFn) -> tuple[SequenceLayout, TokenIds]:
    prologue = draw(st.integers(0, 4))
    sizes = (draw(st.integers(1, 5)) if prologue else 0, draw(st.integers(1, 5)))
    layout = SequenceLayout(LayoutConfig(prologue, sizes[0], draw(st.integers(1, 6)), sizes[1]))
    batch = draw(st.integers(1, 3))

    def ids(count: int, size: int) -> torch.Tensor:
        values = st.lists(st.integers(0, max(size - 1, 0)), min_size=batch * count, max_size=batch * count)
        return torch.tensor(draw(values), dtype=torch.int64).view(batch, count)

    return layout, TokenIds(ids(prologue, sizes[0]), ids(layout.visual_tokens, sizes[1]))


@settings(max_examples=80, deadline=None)
@given(layouts_and_tokens())
def test_unpack_is_the_inverse_of_pack(case: tuple[SequenceLayout, TokenIds]) -> None:
    layout, tokens = case
    sequence = layout.pack(tokens)
    assert sequence.shape == (len(tokens), layout.length)
    back = layout.unpack(sequence)
    assert torch.equal(back.prologue, tokens.prologue)
    assert torch.equal(back.visual, tokens.visual)
    allowed = layout.allowed()
    assert allowed.shape == (layout.length, layout.vocabulary)
    assert allowed.gather(1, sequence.T).all()
    # Every id of the vocabulary has its one segment, and every position too.
    assert sum(s.last_id - s.first_id for s in layout.segments) == layout.vocabulary
    assert [s.name for t in range(layout.length) for s in layout.segments if s.start <= t < s.stop] == [
        layout.segment(t).name for t in range(layout.length)
    ]


def test_the_vocabulary_of_the_method() -> None:
    assert LAYOUT.pack(TOKENS).tolist() == [[16, 23, 24, 15, 0, 3]]
    assert (LAYOUT.vocabulary, LAYOUT.length, LAYOUT.eos_id) == (25, 6, 24)
    assert PLAIN.pack(TOKENS.without_prologue()).tolist() == [[15, 0, 3]]
    assert (PLAIN.vocabulary, PLAIN.length) == (16, 3)
    assert LAYOUT.pack_prologue(TOKENS.prologue).tolist() == [[16, 23, 24]]


def test_visual_dropout_replaces_visual_inputs_by_eos() -> None:
    sequence = LAYOUT.pack(TokenIds.cat([TOKENS, TOKENS]))
    inputs = LAYOUT.inputs(sequence, torch.tensor([True, False]))
    assert inputs.tolist() == [[16, 23, 24, 24, 24], [16, 23, 24, 15, 0]]
    assert torch.equal(PLAIN.inputs(sequence[:, 3:], torch.tensor([True, True])), sequence[:, 3:-1])


@pytest.mark.parametrize(("layout", "split"), [(LAYOUT, [[0], [1, 2], [3], [4, 5]]), (PLAIN, [[0], [], [], [1, 2]])])
def test_positions_are_asked_for(layout: SequenceLayout, split: list[list[int]]) -> None:
    sequence = layout.pack(layout.kept(TokenIds.cat([TOKENS, TOKENS])))
    values = torch.arange(2.0 * layout.length).view(2, -1)
    assert [part.tolist() for part in layout.split_inputs(values[0])] == split
    sums = layout.by_segment(values, sequence)
    assert list(sums) == ["prologue", "eos", "visual"]
    assert [total.tolist() for total in sums.values()] == (
        [[1, 13], [2, 8], [12, 30]] if layout.has_prologue else [[0, 0], [0, 0], [3, 12]]
    )
    vectors = torch.zeros(2, layout.length - 1, 4)
    placed = layout.place_prologue(vectors, torch.ones(2, layout.prologue_tokens, 4))
    assert placed.sum(2)[0].tolist() == ([4, 4, 0, 0, 0] if layout.has_prologue else [0, 0])


@pytest.mark.parametrize(
    ("prologue", "visual", "named"),
    [
        ([[0, 8]], [[0, 0, 0]], "prologue id 8 .*0…7"),
        ([[0, 0]], [[0, 16, 0]], "visual id 16 .*0…15"),
        ([[0, -1]], [[0, 0, 0]], "prologue id -1"),
        ([[0]], [[0, 0, 0]], "2 prologue ids"),
        ([[0, 0]], [[0, 0]], "3 visual ids"),
    ],
)
def test_ids_and_counts_that_do_not_fit(prologue: list, visual: list, named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        LAYOUT.pack(TokenIds(torch.tensor(prologue), torch.tensor(visual)))


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (
            TokenIds(torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.int64)),
            "prologue ids are int64, not torch.float32",
        ),
        (TokenIds(torch.zeros(1, 2).bool(), torch.zeros(1, 3).long()), "prologue ids are int64, not torch.bool"),
        (TokenIds(torch.zeros(2, 2).long(), torch.zeros(1, 3).long()), "of 2 images and visual ids of 1"),
        (TokenIds([[0, 0]], [[0, 0, 0]]), r"prologue ids are an int64 tensor \(B, 2\), not list"),
    ],
)
def test_ids_of_another_kind(tokens: TokenIds, named: str) -> None:
    with pytest.raises(SamplingError, match=named):
        LAYOUT.check(tokens)


def test_ids_of_few_bits_do_not_wrap_around() -> None:
    layout = SequenceLayout(LayoutConfig(2, 8, 3, 255))
    tokens = TokenIds(torch.tensor([[0, 7]]), torch.tensor([[254, 0, 3]]))
    small = TokenIds(tokens.prologue.to(torch.uint8), tokens.visual.to(torch.uint8))
    assert torch.equal(layout.pack(small), layout.pack(tokens))


def test_sequences_that_are_none() -> None:
    sequence = LAYOUT.pack(TOKENS)
    with pytest.raises(SamplingError, match="EOS"):
        LAYOUT.unpack(sequence.index_fill(1, torch.tensor([2]), 3))
    with pytest.raises(SamplingError, match="6 ids per image"):
        LAYOUT.unpack(sequence[:, :-1])
    with pytest.raises(SamplingError, match="prologue id"):
        LAYOUT.unpack(sequence.index_fill(1, torch.tensor([0]), 3))
    with pytest.raises(IndexError):
        LAYOUT.segment(6)
