"""Weights as int8: the rounding is the nearest, the kernels compute the same, biases and rows stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prologue.models import int8
from prologue.models.int8 import Int8Linear, has_int8, quantize_linears
from prologue.models.layers import Linear
from prologue.utils.rng import torch_stream


def linear(inputs: int, outputs: int, bias: bool = True) -> Linear:
    layer = Linear(inputs, outputs, bias=bias)
    generator = torch_stream(0, "tests")
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return layer


def restored(layer: Int8Linear) -> Tensor:
    return layer.weight.double() * layer.scale.double()[:, None]


def test_each_output_is_rounded_to_127_steps_of_its_own() -> None:
    layer = linear(40, 6)
    with torch.no_grad():
        layer.weight[3] *= 1000
        layer.weight[5] = 0
    found = Int8Linear(layer, torch.float32)
    assert found.weight.dtype == torch.int8
    assert found.weight.abs().amax(1).tolist() == [127] * 5 + [0]
    step = layer.weight.detach().abs().amax(1).double() / 127
    error = (restored(found) - layer.weight.double()).abs()
    assert bool((error <= step[:, None] * 0.5001).all())
    # The scale is rounded to bf16, and the weights against that scale: half a step of it, but where 127 is not enough.
    coarse = Int8Linear(layer, torch.bfloat16)
    beyond = coarse.weight.abs() == 127
    error = (restored(coarse) - layer.weight.double()).abs() / coarse.scale.double().clamp_min(1e-30)[:, None]
    assert float(error[~beyond].detach().max()) <= 0.5001
    assert float(error.detach().max()) <= 0.8


@pytest.mark.parametrize("inputs", [64, 66])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (3, 5)])
def test_both_kernels_are_the_product_with_the_restored_weights(inputs: int, shape: tuple[int, ...]) -> None:
    layer = Int8Linear(linear(inputs, 10), torch.bfloat16)
    x = torch.randn(*shape, inputs, generator=torch_stream(1, "tests")).bfloat16()
    exact = x.double() @ restored(layer).T + layer.bias.double()
    found = layer(x)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < 0.01
    wide = Int8Linear(linear(inputs, 10), torch.float32)
    exact = x.double() @ restored(wide).T + wide.bias.double()
    assert torch.allclose(wide(x.float()).double(), exact, rtol=1e-5, atol=1e-4)


def test_the_packed_kernel_is_used_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(int8.F, "linear", lambda x, w: used.append(x.shape[-1]) or x @ w.T)
    for inputs, dtype in ((64, torch.bfloat16), (66, torch.bfloat16), (64, torch.float32)):
        Int8Linear(linear(inputs, 4), dtype)(torch.ones(1, inputs, dtype=dtype))
    assert used == [66, 64]


def test_rows_are_some_outputs_without_bias() -> None:
    layer = linear(32, 8)
    for made in (layer, Int8Linear(layer, torch.float32)):
        x = torch.randn(2, 32, generator=torch_stream(2, "tests"))
        whole = made(x) - made.bias
        assert torch.allclose(made.rows(x, 2, 5), whole[:, 2:5], atol=1e-5)
        assert torch.allclose(made.rows(x, 3, None), whole[:, 3:], atol=1e-5)


def test_all_linear_layers_below_are_replaced() -> None:
    model = nn.Sequential(linear(4, 4), nn.Sequential(nn.ReLU(), linear(4, 2, bias=False)))
    assert not has_int8(model)
    quantize_linears(model, torch.bfloat16)
    assert has_int8(model)
    assert not any(isinstance(module, Linear) for module in model.modules())
    assert not list(model.parameters())
    assert model[1][1].bias is None
