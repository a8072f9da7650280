"""Codebook health: counts, re-seeding, k-means on the sphere, and the sentences about a collapse."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

from prologue.training.codebooks import Usage, collapse_sentences, replacement_rows, spherical_kmeans


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_replacement_rows_are_distinct_outputs() -> None:
    z = F.normalize(torch.randn(2, 5, 3, generator=generator()), dim=-1)
    rows, values = replacement_rows(torch.tensor([1, 4, 7]), z, generator())
    assert sorted(rows.tolist()) == [1, 4, 7]
    assert len({tuple(value.tolist()) for value in values}) == 3
    assert all((z.flatten(0, 1) == value).all(1).any() for value in values)
    rows, values = replacement_rows(torch.arange(50), z, generator())  # fewer outputs than unused codes
    assert len(rows) == len(set(rows.tolist())) == len(values) == 10


def test_kmeans_finds_the_centres() -> None:
    centres = F.normalize(torch.randn(6, 5, generator=generator()), dim=-1)
    noise = 0.02 * torch.randn(600, 5, generator=generator(1))
    points = F.normalize(centres.repeat(100, 1) + noise, dim=-1)
    found = spherical_kmeans(points, 6, generator(2))
    assert torch.allclose(found.norm(dim=1), torch.ones(6), atol=1e-5)
    nearest = (centres @ found.T).max(1)
    assert sorted(nearest.indices.tolist()) == list(range(6))
    assert float(nearest.values.min()) > 0.999
    assert torch.equal(found, spherical_kmeans(points, 6, generator(2)))


def test_kmeans_of_outputs_whose_cosines_round_to_one() -> None:
    """Before the prologue depends on the image, all its outputs lie within some 1e-4 of each other."""
    middle, offsets = torch.randn(5, generator=generator()), torch.randn(2, 5, generator=generator(1))
    noise = 1e-5 * torch.randn(300, 5, generator=generator(2))
    points = F.normalize(middle + 1e-4 * offsets.repeat(150, 1) + noise, dim=-1)
    kinds = torch.arange(2).repeat(150)
    for seed in range(5):
        found = spherical_kmeans(points, 2, generator(seed)).double()
        distances = (points.double()[:, None] - found).norm(dim=-1)
        assert distances.argmin(1).tolist() in (kinds.tolist(), (1 - kinds).tolist())
        assert float(distances.amin(1).max()) < 3e-5


def test_kmeans_with_copies_and_with_few_points() -> None:
    same = F.normalize(torch.ones(20, 4), dim=-1)
    assert torch.isfinite(spherical_kmeans(same, 3, generator())).all()
    few = F.normalize(torch.randn(3, 4, generator=generator()), dim=-1)
    found = spherical_kmeans(few, 7, generator())
    assert found.shape == (7, 4)
    assert torch.allclose(found.norm(dim=1), torch.ones(7), atol=1e-5)
    assert len({tuple(row.tolist()) for row in found}) == 7


def test_an_empty_cluster_takes_the_farthest_point() -> None:
    points = F.normalize(torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1]]), dim=-1)
    for seed in range(5):
        found = spherical_kmeans(points, 2, generator(seed))
        assert sorted(tuple(row.round().tolist()) for row in found) == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("figures", "options", "expected"),
    [
        ((0.5, 3.0, 1.0), (True, True), []),
        ((0.5, None, None), (False, False), []),
        ((0.01, None, None), (False, False), [r"1.0% of its codes in use\): try --tokenizer-training.revive-every 20"]),
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
