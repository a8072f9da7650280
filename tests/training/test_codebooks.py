"""Codebook health: counts, and the sentences about a collapse."""

from __future__ import annotations

import math
import re

import pytest
import torch

from prologue.training.codebooks import Usage, collapse_sentences


def test_usage_over_all_positions() -> None:
    usage = Usage(1, 4, torch.device("cpu"))
    usage.add(torch.tensor([[0, 0, 1]]))
    usage.add(torch.tensor([[0, 1, 1]]))
    assert usage.counts.tolist() == [[3, 3, 0, 0]]
    assert usage.used == 0.5
    assert usage.perplexity() == pytest.approx(2)
    usage.reset()
    assert usage.used == 0
    assert usage.perplexity() == 1


def test_usage_by_position() -> None:
    """The same id everywhere in one position carries nothing, however many ids the positions use together."""
    usage = Usage(2, 4, torch.device("cpu"))
    usage.add(torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3]]))
    assert usage.counts.tolist() == [[4, 0, 0, 0], [0, 2, 1, 1]]
    assert usage.entropies().tolist() == pytest.approx([0, 1.5 * math.log(2)])
    assert usage.used == 1


@pytest.mark.parametrize(
    ("figures", "options", "expected"),
    [
        ((0.5, 3.0, 1.0), (True, True), []),
        ((0.5, None, None), (False, False), []),
        (
            (0.01, None, None),
            (False, False),
            [r"1.0% of its codes in use\): try --tokenizer-training.dead-code-reset"],
        ),
        ((0.01, None, None), (True, False), ["try a lower learning rate"]),
        ((0.5, 0.01, 0.02), (True, False), ["diversity 0.01 nats, use 0.02 nats per image.*prologue-kmeans 100 400"]),
        ((0.5, 4.0, 0.02), (True, True), [r"collapsed \(use 0.02 nats per image\): try more steps"]),
        ((0.01, 0.0, 5.0), (False, False), ["visual codebook", r"diversity 0.00 nats per image"]),
    ],
)
def test_a_collapse_is_said_in_one_sentence_with_its_remedy(
    figures: tuple[float, float | None, float | None], options: tuple[bool, bool], expected: list[str]
) -> None:
    sentences = collapse_sentences(*figures, *options)
    assert len(sentences) == len(expected)
    for sentence, pattern in zip(sentences, expected, strict=True):
        assert re.search(pattern, sentence), sentence
