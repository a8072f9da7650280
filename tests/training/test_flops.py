"""Counted FLOPs against hand counts of the matrix products of each network."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from prologue.config import RunConfig, TransformerConfig
from prologue.models.sequence import SequenceLayout
from prologue.presets import preset
from prologue.training.flops import prior_step_flops, tokenizer_step_flops

TRAINED, FIXED = 3, 2
"""Passes of a network: forward, and backward for the inputs; a trained network also backward for the weights."""


def stack(config: TransformerConfig, tokens: int) -> float:
    """One forward pass of a transformer over one sequence."""
    products = 4 * config.width**2 + 3 * config.width * config.hidden
    return config.depth * (2.0 * tokens * products + 4.0 * tokens**2 * config.width)


def prior(config: RunConfig, width: int, transformer: TransformerConfig, prologue: bool = True) -> float:
    layout = SequenceLayout.of(config.tokenizer, prologue)
    return stack(transformer, layout.length) + 2.0 * layout.length * width * layout.vocabulary


def discriminator(size: int, channels: int) -> float:
    """4×4 convolutions of (input, output) channels at the output's side: three of stride 2, two of stride 1."""
    half, quarter, eighth = size // 2, size // 4, size // 8
    layers = ((3, 1, half), (1, 2, quarter), (2, 4, eighth), (4, 8, eighth - 1))
    total = sum(2.0 * 16 * (i if i == 3 else i * channels) * o * channels * side**2 for i, o, side in layers)
    return total + 2.0 * 16 * 8 * channels * (eighth - 2) ** 2


def tokenizer_step(config: RunConfig) -> float:
    tokenizer, training = config.tokenizer, config.tokenizer_training
    visual, prologue = tokenizer.visual_tokens, tokenizer.prologue_tokens
    edge = 2.0 * visual * tokenizer.patch_dim * tokenizer.encoder.width
    codes = 2.0 * visual * tokenizer.code_dim * tokenizer.codebook_size
    total = codes + TRAINED * 2.0 * prologue * tokenizer.code_dim * tokenizer.prologue_codebook_size
    if tokenizer.prologue_encoder is not None:
        total += stack(tokenizer.encoder, visual) + edge
        total += TRAINED * stack(tokenizer.prologue_encoder, visual + prologue)
    else:
        queries = visual if tokenizer.variant == "1d" else 0
        total += TRAINED * stack(tokenizer.encoder, visual + prologue + queries)
        total += TRAINED * (stack(tokenizer.decoder, visual + queries) + edge)
        total += 2 * edge  # the input of the encoder needs no gradient
    if prologue:
        passes = TRAINED if training.shared_prior_pass else FIXED + TRAINED
        total += passes * prior(config, training.prior_model.width, training.prior_model.transformer)
    if training.gan:
        total += (FIXED + 2 * TRAINED) * discriminator(tokenizer.image_size[0], training.gan_channels)
    return training.batch * total


CASES: list[tuple[str, dict[str, Any]]] = [
    ("small-32", {}),
    ("small-32", {"shared_prior_pass": False}),
    ("small-32", {"gan": 0.1}),
    ("small-32-2d", {}),
    ("small-32-1d", {}),
    ("small-32-post", {}),
]


@pytest.mark.parametrize(("name", "training"), CASES)
def test_flops_of_a_tokenizer_step(name: str, training: dict[str, Any]) -> None:
    config = preset(name)
    config = dataclasses.replace(config, tokenizer_training=dataclasses.replace(config.tokenizer_training, **training))
    assert tokenizer_step_flops(config) == pytest.approx(tokenizer_step(config), rel=0.05)


@pytest.mark.parametrize("prologue", [True, False])
def test_flops_of_a_prior_step(prologue: bool) -> None:
    config = preset("small-32")
    config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, prologue=prologue))
    expected = TRAINED * prior(config, config.prior.width, config.prior.transformer, prologue)
    assert prior_step_flops(config) == pytest.approx(config.prior_training.batch * expected)
