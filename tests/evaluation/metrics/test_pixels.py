import math

import numpy as np
import pytest
import torch

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.pixels import psnr, ssim
from prologue.utils.rng import torch_stream


def images(seed: int = 0, count: int = 3, height: int = 32, width: int = 24) -> torch.Tensor:
    generator = torch_stream(seed, "pixels")
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def test_psnr_is_per_image_with_a_peak_of_255() -> None:
    a = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    b = torch.stack([a[0] + 5, a[1] - 20])
    values = psnr(a, b)
    assert values[0].item() == pytest.approx(20 * math.log10(255 / 5))
    assert values[1].item() == pytest.approx(20 * math.log10(255 / 20))


def test_exact_images_have_the_psnr_of_one_level_in_one_value() -> None:
    a = images(count=1)
    nearly = a.clone()
    nearly[0, 0, 0, 0] ^= 1
    assert psnr(a, a).item() == pytest.approx(psnr(nearly, a).item())
    assert psnr(a, a).item() == pytest.approx(10 * math.log10(255**2 * a.numel()))
    assert ssim(a, a).item() == pytest.approx(1)


def test_ssim_equals_its_definition_inside_a_flat_pair() -> None:
    """Flat images have no variance: what is left is the luminance term (2ab + c) / (a² + b² + c), c = (0.01·255)²."""
    a = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    b = torch.full((1, 3, 16, 16), 50, dtype=torch.uint8)
    c = 2.55**2
    assert ssim(a, b).item() == pytest.approx((2 * 100 * 50 + c) / (100**2 + 50**2 + c), rel=1e-6)


def test_ssim_equals_its_definition_on_noise() -> None:
    a, b = images(0, 1, 24, 24), images(1, 1, 24, 24)
    offsets = np.arange(-5, 6)
    window = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total = []
    for x, y in zip(a[0].double().numpy(), b[0].double().numpy(), strict=True):
        padded = [np.pad(image, 5, mode="reflect") for image in (x, y)]
        for row in range(24):
            for column in range(24):
                p, q = (image[row : row + 11, column : column + 11] for image in padded)
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                total.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b).item() == pytest.approx(np.mean(total), rel=1e-5)


def test_values_do_not_depend_on_the_batches() -> None:
    a, b = images(0, 5), images(1, 5)
    for measure in (psnr, ssim):
        parts = torch.cat([measure(a[rows], b[rows]) for rows in (slice(0, 1), slice(1, 5))])
        torch.testing.assert_close(parts, measure(a, b))


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(EvaluationError, match="uint8"):
        psnr(images().float(), images().float())
    with pytest.raises(EvaluationError, match="one size"):
        ssim(images(), images(width=32))
    with pytest.raises(EvaluationError, match="more than 5 px"):
        ssim(images(height=4), images(height=4))
