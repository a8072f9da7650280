import pytest
import torch

from prologue.errors import ConfigError
from prologue.models.discriminator import SMALLEST_IMAGE, PatchDiscriminator
from prologue.utils.rng import torch_stream


def make(channels: int = 8, seed: int = 0) -> PatchDiscriminator:
    return PatchDiscriminator(channels, generator=torch_stream(seed, "discriminator"))


def test_is_the_pix2pix_network() -> None:
    model = PatchDiscriminator(generator=torch_stream(0, "discriminator"))
    convolutions = [m for m in model.net if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in convolutions] == [
        (3, 64, 2, True),
        (64, 128, 2, False),
        (128, 256, 2, False),
        (256, 512, 1, False),
        (512, 1, 1, True),
    ]
    assert all(c.kernel_size == (4, 4) and c.padding == (1, 1) for c in convolutions)
    kinds = [type(m).__name__ for m in model.net]
    norm = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *norm * 3, "Conv2d"]
    assert all(m.negative_slope == 0.2 for m in model.net if isinstance(m, torch.nn.LeakyReLU))
    assert sum(p.numel() for p in model.parameters()) == 2_765_633


def test_initial_weights_have_the_stated_spread() -> None:
    model = make(32)
    for module in model.net:
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
            assert module.running_mean is not None
            assert not module.running_mean.any()
            assert module.running_var is not None
            assert bool((module.running_var == 1).all())


def test_draws_only_from_its_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.net[0].weight, other.net[0].weight)


@pytest.mark.parametrize(("size", "logits"), [((24, 24), (1, 1)), ((32, 32), (2, 2)), ((24, 40), (1, 3))])
def test_one_logit_per_patch(size: tuple[int, int], logits: tuple[int, int]) -> None:
    out = make()(torch.zeros(2, 3, *size))
    assert out.shape == (2, 1, *logits)


def test_a_logit_sees_seventy_pixels() -> None:
    model = make().eval()
    images = torch.zeros(1, 3, 128, 128, requires_grad=True)
    model(images)[0, 0, 7, 7].backward()
    assert images.grad is not None
    seen = images.grad.abs().sum((0, 1))
    assert (seen.sum(0) > 0).sum() == 70
    assert (seen.sum(1) > 0).sum() == 70


@pytest.mark.parametrize("size", [(23, 64), (64, 23), (8, 8)])
def test_refuses_images_that_are_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"at least 24 px, not {size[0]}x{size[1]}: .*image_size"):
        make()(torch.zeros(1, 3, *size))


def test_the_smallest_image_is_exact() -> None:
    model = make(2).eval()
    assert model(torch.zeros(1, 3, SMALLEST_IMAGE, SMALLEST_IMAGE)).shape[-2:] == (1, 1)
    with pytest.raises(RuntimeError):
        model.net(torch.zeros(1, 3, SMALLEST_IMAGE - 1, SMALLEST_IMAGE - 1))


def test_a_second_order_gradient_exists() -> None:
    """R1 differentiates the norm of an input gradient (METHOD §7)."""
    model = make(4)
    images = torch.randn(2, 3, 24, 24, generator=torch_stream(0, "images"), requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    weight = model.net[0].weight.grad
    assert weight is not None
    assert weight.abs().sum() > 0
