import pytest
import torch

from prologue.models import augment as module
from prologue.models.augment import augment
from prologue.utils.rng import torch_stream


def images(count: int = 4, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch_stream(0, "images")) * 2 - 1


def test_same_generator_state_gives_the_same_transform() -> None:
    before = torch.get_rng_state()
    first = augment(images(), torch_stream(1, "augment"))
    assert torch.equal(first, augment(images(), torch_stream(1, "augment")))
    assert not torch.equal(first, augment(images(), torch_stream(2, "augment")))
    assert torch.equal(torch.get_rng_state(), before)


def test_real_and_fake_share_a_transform_when_asked() -> None:
    """The transform does not depend on the pixels: it is affine in them."""
    a, b = images(), images().flip(0)
    zero = augment(torch.zeros_like(a), torch_stream(1, "augment"))
    each = [augment(x, torch_stream(1, "augment")) - zero for x in (a, b)]
    both = augment(a + b, torch_stream(1, "augment")) - zero
    torch.testing.assert_close(both, each[0] + each[1], atol=1e-5, rtol=1e-5)


def test_each_image_has_its_own_draw() -> None:
    same = images(1).expand(8, -1, -1, -1)
    out = augment(same, torch_stream(1, "augment"))
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8


def test_gradient_is_that_of_finite_differences() -> None:
    x = images(2, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: augment(value, torch_stream(5, "augment")), (x,))


@pytest.mark.parametrize(("draw", "rows"), [(0.0, -2), (0.5, 0), (0.999, 2)])
def test_translation_moves_by_an_eighth_and_fills_with_grey(draw: float, rows: int) -> None:
    x = images(1)
    moved = module._translate(x, torch.tensor([[draw, 0.5]]))
    expected = torch.zeros_like(x)
    if rows < 0:
        expected[:, :, :rows] = x[:, :, -rows:]
    else:
        expected[:, :, rows:] = x[:, :, : x.shape[2] - rows]
    assert torch.equal(moved, expected)


def test_cutout_blanks_half_of_each_side_around_its_centre() -> None:
    out = module._cut_out(torch.ones(1, 3, 16, 24), torch.tensor([[0.5, 0.5]]))
    expected = torch.ones(1, 3, 16, 24)
    expected[:, :, 4:12, 6:18] = 0
    assert torch.equal(out, expected)


def test_neutral_colour_factors_change_nothing_and_each_factor_does_its_part() -> None:
    x = images()
    one, zero = torch.ones(4), torch.zeros(4)
    torch.testing.assert_close(module._recolour(x, zero, one, one), x)
    torch.testing.assert_close(module._recolour(x, one * 0.25, one, one), x + 0.25)
    grey = module._recolour(x, zero, zero, one)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = module._recolour(x, zero, one, zero)
    torch.testing.assert_close(flat, x.mean((1, 2, 3), keepdim=True).expand_as(x))
