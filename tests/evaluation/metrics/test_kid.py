import numpy as np
import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.kid import KernelDistance, kernel_distance
from prologue.utils.rng import torch_stream


def draw(n: int, seed: int, d: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch_stream(seed, "features")) + shift


def brute_force(x: torch.Tensor, y: torch.Tensor) -> float:
    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


def test_equals_the_double_loop() -> None:
    x, y = draw(9, 0), draw(13, 1, shift=0.5)
    assert kernel_distance(x, y).value == pytest.approx(brute_force(x, y), rel=1e-10)


def test_equals_torchmetrics_on_sets_of_one_size() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = draw(50, 0).double(), draw(50, 1, shift=0.3).double()
    assert kernel_distance(x, y).value == pytest.approx(poly_mmd(x, y).item(), rel=1e-9)


def test_jackknife_equals_leaving_out_one_by_one() -> None:
    x, y = draw(7, 0), draw(9, 1, shift=0.5)
    variance = 0.0
    for mine, estimate in ((x, lambda rest: brute_force(rest, y)), (y, lambda rest: brute_force(x, rest))):
        k = len(mine)
        values = np.array([estimate(mine[torch.arange(k) != i]) for i in range(k)])
        variance += (k - 1) / k * np.square(values - values.mean()).sum()
    result = kernel_distance(x, y)
    assert result.error == pytest.approx(variance**0.5, rel=1e-8)
    assert result.high - result.value == pytest.approx(1.96 * result.error, rel=1e-4)
    assert result.value - result.low == pytest.approx(1.96 * result.error, rel=1e-4)


def test_is_unbiased_for_equal_distributions() -> None:
    values = np.array([kernel_distance(draw(20, 2 * i), draw(30, 2 * i + 1)).value for i in range(400)])
    reach = 4 * values.std() / len(values) ** 0.5
    assert abs(values.mean()) < reach
    # Keeping each image's pair with itself would add (mean k(x, x) - mean k(x, y)) · (1/20 + 1/30): far out of reach.
    x = draw(4000, 9)
    own, other = ((x.square().sum(1) / 6 + 1) ** 3).mean(), (((x * x.flip(0)).sum(1) / 6 + 1) ** 3).mean()
    assert (own - other).item() * (1 / 20 + 1 / 30) > 5 * reach


def test_interval_covers_the_true_value_nineteen_times_of_twenty() -> None:
    """For N(0, 1) against N(shift, 1) in one dimension the value is written down from moments."""
    shift = 0.7
    # k = (xy + 1)³ = 1 + 3xy + 3x²y² + x³y³, so MMD² = 3 (Δ mean)² + 3 (Δ second moment)² + (Δ third moment)².
    truth = 3 * shift**2 + 3 * (shift**2) ** 2 + (shift**3 + 3 * shift) ** 2
    results = [
        kernel_distance(draw(150, 2 * i, 1), draw(150, 2 * i + 1, 1, shift), subset_size=75 if i % 2 else 150)
        for i in range(300)
    ]
    inside = np.mean([r.low <= truth <= r.high for r in results])
    assert 0.9 <= inside <= 0.99
    assert np.mean([r.value for r in results]) == pytest.approx(truth, rel=0.05)


def test_subsets_are_disjoint_seeded_and_of_the_asked_size() -> None:
    x, y = draw(40, 0), draw(30, 1, shift=0.5)
    whole, parts = kernel_distance(x, y), kernel_distance(x, y, subset_size=10)
    assert parts == kernel_distance(x, y, subset_size=10)
    assert parts != kernel_distance(x, y, subset_size=10, seed=1)
    assert parts.value != whole.value
    assert whole.value == pytest.approx(kernel_distance(x, y, seed=1).value, rel=1e-12)
    assert parts.value == pytest.approx(whole.value, abs=4 * whole.error)


def test_error_shrinks_with_the_number_of_images_not_of_subsets() -> None:
    x, y = draw(800, 0), draw(800, 1, shift=0.5)
    whole, parts = kernel_distance(x, y), kernel_distance(x, y, subset_size=50)
    assert parts.error == pytest.approx(whole.error, rel=0.3)
    assert kernel_distance(x[:200], y[:200]).error == pytest.approx(2 * whole.error, rel=0.3)


def test_more_subsets_than_the_smaller_side_allows_are_not_made() -> None:
    result = kernel_distance(draw(100, 0), draw(7, 1), subset_size=10)
    assert isinstance(result, KernelDistance)
    assert np.isfinite([result.value, result.error]).all()


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(EvaluationError, match="at least 3 images"):
        kernel_distance(draw(2, 0), draw(10, 1))
    with pytest.raises(EvaluationError, match="same features"):
        kernel_distance(draw(5, 0), draw(5, 1, d=7))
    with pytest.raises(EvaluationError, match="NaN"):
        kernel_distance(draw(5, 0), torch.full((5, 6), torch.nan))
