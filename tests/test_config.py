"""Configurations are read strictly from JSON, and invalid values are errors that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prologue.config import (
    DataConfig,
    LayoutConfig,
    OptimizerConfig,
    PriorConfig,
    PriorOptions,
    PriorTraining,
    RunConfig,
    TokenizerConfig,
    TokenizerTraining,
    TransformerConfig,
    prior_rope_axes,
    tokenizer_rope_axes,
)
from prologue.errors import ConfigError
from prologue.utils.serialization import from_dict, to_dict


def test_round_trip_through_json() -> None:
    config = RunConfig(
        seed=3,
        tokenizer=TokenizerConfig(
            variant="prologue-post",
            image_size=(64, 96),
            prologue_encoder=TransformerConfig(128, 2, 4, "11/4", rope_axes=(8, 8, 16)),
        ),
        data=DataConfig(background=(0, 1, 2), flip=False),
    )
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@given(
    st.builds(
        PriorConfig,
        layout=st.builds(
            LayoutConfig, st.integers(1, 64), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 2**16)
        ),
        num_classes=st.integers(0, 10**6),
        transformer=st.builds(
            TransformerConfig, st.sampled_from([64, 128]), st.integers(1, 40), st.sampled_from([1, 2])
        ),
        tied=st.booleans(),
        dropout=st.floats(0, 0.9),
    )
)
def test_any_prior_config_survives_json(config: PriorConfig) -> None:
    assert from_dict(PriorConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_missing_fields_keep_the_values_of_the_base() -> None:
    base = RunConfig(seed=5, data=DataConfig(flip=False))
    changed = from_dict(RunConfig, {"data": {"crop": "center"}}, base=base)
    assert changed == RunConfig(seed=5, data=DataConfig(flip=False, crop="center"))
    assert from_dict(RunConfig, {"data": {"crop": "center"}}) == RunConfig(data=DataConfig(crop="center"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sed": 1}, "unknown field 'sed'"),
        ({"tokenizer": {"encoder": {"widht": 1}}}, r"unknown field 'tokenizer\.encoder\.widht'"),
        ({"seed": "1"}, "seed must be int, not '1'"),
        ({"seed": True}, "seed must be int, not True"),
        ({"data": {"flip": 1}}, r"data\.flip must be bool, not 1"),
        ({"data": {"crop": "diagonal"}}, r"data\.crop must be one of \['random', 'center'\]"),
        ({"data": {"background": [1, 2]}}, r"data\.background must have 3 entries, not 2"),
        ({"data": {"background": 7}}, r"data\.background must be a list"),
        ({"data": []}, "data must be a table of fields"),
        ({"tokenizer_training": {"prologue_kmeans": [1, "x"]}}, r"prologue_kmeans must be int, not 'x'"),
    ],
)
def test_json_is_read_strictly(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RunConfig, data)


def test_whole_numbers_are_floats_too() -> None:
    assert from_dict(OptimizerConfig, {"lr": 1}).lr == 1.0
    assert isinstance(from_dict(OptimizerConfig, {"lr": 1}).lr, float)


def _tokenizer(**values: Any) -> RunConfig:
    return RunConfig(tokenizer=TokenizerConfig(**values))


@pytest.mark.parametrize(
    ("build", "values", "message"),
    [
        (TransformerConfig, {"width": 100, "heads": 3}, "width 100 is not divisible by heads 3"),
        (TransformerConfig, {"width": 6, "heads": 2}, "head size 3 .* must be even"),
        (TransformerConfig, {"mlp_ratio": "8/0"}, "mlp_ratio must be a fraction"),
        (TransformerConfig, {"rope_axes": (20, 20, 20)}, r"\(20, 20, 20\) must sum to the head size 64"),
        (TransformerConfig, {"rope_axes": (21, 21, 22)}, "three even sizes"),
        (TransformerConfig, {"depth": 0}, "TransformerConfig.depth must be positive"),
        (TokenizerConfig, {"variant": "3d"}, "unknown tokenizer variant '3d'"),
        (TokenizerConfig, {"image_size": (256, 100)}, "image columns 100 is not divisible by .* 16: choose 96"),
        (TokenizerConfig, {"image_size": (0, 16)}, "image_size must be two positive numbers"),
        (TokenizerConfig, {"prologue_tokens": 0}, "prologue_tokens must be positive"),
        (TokenizerConfig, {"variant": "2d"}, "variant '2d' has no prologue: set prologue_tokens to 0"),
        (TokenizerConfig, {"prologue_encoder": TransformerConfig()}, "'prologue' has no prologue_encoder"),
        (TokenizerConfig, {"variant": "prologue-post"}, "'prologue-post' needs prologue_encoder"),
        (PriorOptions, {"width": 100, "heads": 3}, "width 100 is not divisible by heads 3"),
        (PriorOptions, {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        (DataConfig, {"background": (0, 0, 256)}, r"data\.background must be three numbers in 0\.\.255"),
        (DataConfig, {"validation_fraction": 1.0}, r"validation_fraction must lie in \[0, 1\)"),
        (OptimizerConfig, {"lr": 0.0}, "lr must be positive"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
        (TokenizerTraining, {"visual_dropout": 1.5}, r"visual_dropout must lie in \[0, 1\]"),
        (TokenizerTraining, {"perceptual": "vgg"}, "TokenizerTraining.perceptual must be one of .*, not 'vgg'"),
        (PriorTraining, {"steps": 0}, "PriorTraining.steps must be positive"),
        (RunConfig, {"precision": "fp8"}, "precision must be one of"),
        (RunConfig, {"seed": -1}, "seed must not be negative"),
        (_tokenizer, {"image_size": (16, 64)}, "needs images of at least 24 px, not 16: set tokenizer_training.gan"),
    ],
)  # fmt: skip
def test_invalid_values_are_refused(build: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**values)


def test_derived_sizes() -> None:
    tokenizer = TokenizerConfig(image_size=(32, 64), patch_size=8)
    assert (tokenizer.grid, tokenizer.visual_tokens, tokenizer.patch_dim) == ((4, 8), 32, 192)
    assert TransformerConfig(768, 12, 12, "8/3").hidden == 2048
    assert TransformerConfig(512, 10, 8, "11/4").hidden == 1408


@pytest.mark.parametrize("head_dim", [2, 8, 16, 32, 64, 96, 128])
def test_rope_axes_fill_every_head(head_dim: int) -> None:
    config = TransformerConfig(width=head_dim * 2, heads=2)
    rows, columns, index = tokenizer_rope_axes(config)
    assert rows + columns + index == head_dim
    assert all(axis % 2 == 0 and axis >= 0 for axis in (rows, columns, index))
    assert prior_rope_axes(config) == (index, rows, columns)
    if head_dim == 64:
        assert (rows, columns, index) == (20, 20, 24)
