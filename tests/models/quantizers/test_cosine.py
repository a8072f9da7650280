"""The paper's quantizers: new rows for unused codes, and k-means on the sphere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prologue.models.quantizers import VisualQuantizer, spherical_kmeans


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("used", "changed"), [((0, 2, 3, 5), 4), ((), 6), (range(8), 0)])
def test_unused_codes_become_distinct_outputs(used: tuple[int, ...], changed: int) -> None:
    quantizer, counts = VisualQuantizer(4, 3, 8), torch.zeros(8, dtype=torch.int64)
    counts[list(used)] = 7
    z = F.normalize(torch.randn(2, 3, 3, generator=generator()), dim=-1)  # with no code in use, fewer than codes
    updates = quantizer.reset_unused(z, counts, generator())
    assert [update.parameter for update in updates] == ["codebook"] * (changed > 0)
    for _, rows, values in updates:
        assert len(set(rows.tolist()) - set(used)) == len(rows) == len(values) == changed
        assert len({tuple(value.tolist()) for value in values}) == changed
        assert all((z.flatten(0, 1) == value).all(1).any() for value in values)


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
