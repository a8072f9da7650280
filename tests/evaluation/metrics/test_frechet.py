import numpy as np
import pytest
import scipy.linalg
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.frechet import GaussianStatistics, frechet_distance, frechet_from_moments
from prologue.utils.rng import torch_stream


def draw(n: int, d: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch_stream(seed, "features")
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix * scale + shift


def statistics(features: torch.Tensor, batch: int = 7) -> GaussianStatistics:
    stats = GaussianStatistics(features.shape[1])
    for part in features.split(batch):
        stats.update(part)
    return stats


def test_streams_to_the_moments_of_the_whole() -> None:
    features = draw(50, 6, shift=1e6)  # far from zero: naive sums of squares would lose everything
    stats = statistics(features)
    assert stats.count == 50
    torch.testing.assert_close(stats.mean, features.mean(0))
    np.testing.assert_allclose(stats.covariance, np.cov(features.T), rtol=1e-7, atol=1e-7)


def test_parts_merge_to_the_whole() -> None:
    features = draw(40, 5)
    merged = statistics(features[:11]).merge(GaussianStatistics(5)).merge(statistics(features[11:]))
    whole = statistics(features, 40)
    assert merged.count == 40
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, whole.covariance)
    empty = GaussianStatistics(5).merge(whole)
    torch.testing.assert_close(empty.covariance, whole.covariance)


def test_closed_form_of_diagonal_gaussians() -> None:
    a, b = torch.tensor([4.0, 9.0, 0.0]).double(), torch.tensor([1.0, 25.0, 16.0]).double()
    mean = torch.tensor([1.0, -2.0, 2.0]).double()
    distance = frechet_from_moments(torch.zeros(3).double(), torch.diag(a), mean, torch.diag(b))
    assert distance == pytest.approx(9 + (1 + 4 + 16), rel=1e-12)


def test_closed_form_of_a_rotated_and_scaled_gaussian() -> None:
    """With B = s² A the distance of the covariances is (1 - s)² tr A, in any basis."""
    covariance = statistics(draw(100, 8)).covariance
    zero = torch.zeros(8).double()
    expected = 0.25 * float(covariance.trace())
    assert frechet_from_moments(zero, covariance, zero, covariance * 2.25) == pytest.approx(expected, rel=1e-10)


def test_equals_scipy_and_torchmetrics() -> None:
    from torchmetrics.image.fid import _compute_fid

    a, b = statistics(draw(200, 10)), statistics(draw(150, 10, 1, 1.3, 0.4))
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    shift = (a.mean - b.mean).square().sum().item()
    expected = shift + np.trace(a.covariance.numpy() + b.covariance.numpy() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    theirs = _compute_fid(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(12, 15), (12, 200), (2, 2)])
def test_fewer_samples_than_dimensions(n: int, m: int) -> None:
    """By the data's own factors: tr (AB)^½ is the sum of singular values of the centred data's product."""
    a, b = draw(n, 40), draw(m, 40, 1)
    factors = [(x - x.mean(0)).T / (len(x) - 1) ** 0.5 for x in (a, b)]
    overlap = torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(f.square().sum() for f in factors) - 2 * overlap
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("n", [5, 300])
def test_of_a_set_with_itself_is_zero_and_symmetric(n: int) -> None:
    a, b = statistics(draw(n, 64)), statistics(draw(n, 64, 1))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * float(a.covariance.trace()))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, b) > 1


def test_constant_features_leave_the_shift() -> None:
    a = statistics(torch.zeros(5, 3))
    b = statistics(torch.ones(5, 3))
    assert frechet_distance(a, b) == pytest.approx(3)


def test_the_size_of_the_features_does_not_matter() -> None:
    """A barely trained model gives nearly constant images, whose covariance has entries of 1e-7."""
    first, second = (torch.randn(8, 40, generator=torch_stream(seed), dtype=torch.float64) for seed in (0, 1))
    distance = frechet_distance(statistics(first), statistics(second))
    for scale in (1e-30, 1e-8, 1e8):
        scaled = frechet_distance(statistics(scale * first), statistics(scale * second))
        assert scaled == pytest.approx(scale**2 * distance, rel=1e-9)


def test_refuses_what_it_cannot_measure() -> None:
    stats = GaussianStatistics(3)
    with pytest.raises(EvaluationError, match="at least 1"):
        _ = stats.mean
    stats.update(torch.zeros(1, 3))
    with pytest.raises(EvaluationError, match="at least 2 images"):
        _ = stats.covariance
    with pytest.raises(EvaluationError, match="NaN"):
        stats.update(torch.full((1, 3), torch.nan))
    with pytest.raises(EvaluationError, match=r"\(n, 3\)"):
        stats.update(torch.zeros(2, 4))
    with pytest.raises(EvaluationError, match="same features"):
        frechet_distance(statistics(torch.zeros(2, 3)), statistics(torch.zeros(2, 4)))
    with pytest.raises(EvaluationError, match="merged"):
        stats.merge(GaussianStatistics(4))
