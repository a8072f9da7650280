"""Quantizers by name: options, numbers that must agree with the configuration, and several ids for each position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models.quantizers.residual import IDS, Residual
from torch import Tensor, nn

from prologue.config import Component, TokenizerConfig
from prologue.errors import ConfigError
from prologue.models.quantizers import PROLOGUE_QUANTIZERS, QUANTIZERS, PrologueQuantizer, Quantized
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.utils.rng import torch_stream
from prologue.utils.serialization import from_dict, to_dict

RESIDUAL = {"name": f"{Residual.__module__}:Residual", "ids_per_position": IDS}
FSQ = {"name": "fsq", "levels": [4, 3, 3]}


class WithoutOneHot(PrologueQuantizer):
    def forward(self, h: Tensor) -> Quantized:
        return replace(super().forward(h), one_hot=None)


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (QUANTIZERS, PROLOGUE_QUANTIZERS):
        monkeypatch.setattr(registry, "_components", dict(registry._components))
        for component in (Residual, WithoutOneHot, dict):
            registry.register(component)


def tokenizer(tiny_models: Any, quantizer: Component | None = None, **changes: Any) -> Tokenizer:
    config = tiny_models()[0].config
    changes |= {} if quantizer is None else {"quantizer": quantizer}
    return Tokenizer(replace(config, **changes), seed=1)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 12, generator=torch_stream(0, "images")) * 2 - 1


@pytest.mark.parametrize("levels", [[4], [5], [8, 5, 3], [4, 3, 3]])
def test_fsq_is_a_grid(levels: list[int]) -> None:
    size = int(torch.tensor(levels).prod())
    fsq = QUANTIZERS.build("fsq", {"levels": levels}, width=6, code_dim=len(levels), size=size)
    nn.init.normal_(fsq.proj.weight, std=0.5, generator=torch_stream(0, "tests"))
    nn.init.zeros_(fsq.proj.bias)
    h = torch.randn(20, 1000, 6, generator=torch_stream(0, "features"), requires_grad=True)
    out = fsq(h)
    every = fsq.codes(torch.arange(size)[None])[0]
    assert fsq.size == size == len(every.unique(dim=0))
    assert float(every.abs().max()) == 1
    assert torch.equal(out.ids, fsq.encode(h))
    assert out.ids.unique().tolist() == list(range(size))  # every id occurs, and no other
    torch.testing.assert_close(out.codes, every[out.ids])
    assert float((out.z - out.codes).detach().abs().max()) <= 0.5 / (min(levels) // 2) + 1e-5  # the nearest code
    out.codes.sum().backward()
    assert (h.grad != 0).any()
    assert fsq.start_from(out.z, torch_stream(0, "a")) == fsq.reset_unused(out.z, out.ids, torch_stream(0, "a")) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": {"name": "fqs"}}, "unknown quantizer 'fqs': did you mean 'fsq'"),
        ({"quantizer": {"name": "elsewhere:Mine"}}, "--import elsewhere"),
        ({"prologue_quantizer": FSQ}, "unknown prologue quantizer 'fsq'"),
        ({"quantizer": {"name": "fsq"}}, "missing a required argument: 'levels'"),
        ({"quantizer": {"name": "fsq", "level": [2]}}, "did you mean 'levels'"),
        ({"quantizer": {"name": "cosine", "size": 4}}, "sets size itself"),
        ({"quantizer": FSQ}, r"each of the 4 dimensions of tokenizer.code_dim, not \[4, 3, 3\]"),
        ({"quantizer": {"name": "fsq", "levels": [9, 2, 9, 9]}}, "levels of 3 or more"),
        ({"quantizer": FSQ, "code_dim": 3}, "has 36 ids: set tokenizer.codebook_size to 36, not 16"),
        ({"quantizer": {"name": RESIDUAL["name"]}}, "2 ids for each position and its option ids_per_position is 1"),
        ({"quantizer": RESIDUAL | {"ids_per_position": 0}}, "ids_per_position must be a positive number"),
        ({"prologue_quantizer": RESIDUAL}, "prologue_tokens 3 is not divisible"),
        ({"quantizer": {"name": "builtins:dict"}}, "must be a subclass of .*Quantizer"),
        ({"quantizer": "fsq"}, "quantizer must be a table"),
        ({"quantizer": {"name": "cosine", "x": {1, 2}}}, "quantizer has an option that is not a JSON value"),
    ],
)
def test_quantizers_that_do_not_fit(tiny_models: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tokenizer(tiny_models, **changes)


def test_a_prologue_quantizer_without_a_one_hot_is_refused(tiny_models: Any) -> None:
    model = tokenizer(tiny_models, prologue_quantizer={"name": f"{__name__}:WithoutOneHot"})
    assert model.encode(images()).prologue.shape == (2, 3)
    with pytest.raises(ConfigError, match=r"'.*WithoutOneHot' gives no straight-through one-hot"):
        model.quantize(images())


def test_several_ids_of_a_position_are_several_tokens(tiny_models: Any) -> None:
    model = tokenizer(tiny_models, RESIDUAL, prologue_quantizer=RESIDUAL, prologue_tokens=4)
    encoding, reconstruction = model(images())
    tokens = model.encode(images())
    assert (tokens.visual.shape, tokens.prologue.shape) == ((2, 12), (2, 4))
    assert torch.equal(tokens.visual, encoding.tokens.visual)
    assert encoding.prologue.one_hot.shape == (2, 4, 8)
    assert torch.equal(encoding.prologue.one_hot.argmax(-1), tokens.prologue)
    torch.testing.assert_close(model.decode(tokens.visual), reconstruction)
    layout = SequenceLayout.of(model.config)
    assert (layout.length, layout.visual_start) == (17, 5)
    assert torch.equal(layout.unpack(layout.pack(tokens)).visual, tokens.visual)


def test_defaults_are_not_written(tiny_models: Any) -> None:
    """Files of the paper's quantizers are those of versions without these fields."""
    config = tiny_models()[0].config
    assert not {"quantizer", "prologue_quantizer"} & to_dict(config).keys()
    assert from_dict(TokenizerConfig, to_dict(config)) == config
    other = replace(config, quantizer=FSQ | {"levels": (4, 3, 3)}, code_dim=3, codebook_size=36)
    assert to_dict(other)["quantizer"] == FSQ
    assert from_dict(TokenizerConfig, to_dict(other)) == other
