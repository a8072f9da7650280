"""Floating-point operations of a training step, counted from the configuration: matrix products alone."""

from __future__ import annotations

from prologue.config import RunConfig, TransformerConfig
from prologue.models.sequence import SequenceLayout

_TRAINED = 3
"""Forward, and backward for inputs and weights."""
_PASSED = 2
"""Forward, and backward for inputs: a model that is held fixed."""


def transformer_flops(config: TransformerConfig, tokens: int) -> float:
    """One forward pass of a stack of blocks over one sequence; two operations for a multiply-add."""
    products = 4 * config.width**2 + 3 * config.width * config.hidden
    return config.depth * (2.0 * tokens * products + 4.0 * tokens**2 * config.width)


def tokenizer_step_flops(config: RunConfig) -> float:
    """One step of stage 1: encoder and decoder, and the stage's prior, which is passed and trained.

    A post-hoc prologue reads its visual path forwards alone and has no decoder in its step.
    """
    tokenizer, training = config.tokenizer, config.tokenizer_training
    visual, prologue = tokenizer.visual_tokens, tokenizer.prologue_tokens
    edges = 2.0 * visual * tokenizer.patch_dim * tokenizer.encoder.width
    codes = 2.0 * visual * tokenizer.code_dim * tokenizer.codebook_size
    # The queries of `1d`, as many as patches, pass both stacks; those of a prologue the encoder.
    queries = visual if tokenizer.variant == "1d" else 0
    if tokenizer.prologue_encoder is not None:
        encoder = transformer_flops(tokenizer.encoder, visual) + edges
        total = encoder + _TRAINED * transformer_flops(tokenizer.prologue_encoder, visual + prologue) + codes
    else:
        forward = transformer_flops(tokenizer.encoder, visual + prologue + queries)
        forward += transformer_flops(tokenizer.decoder, visual + queries)
        total = _TRAINED * (forward + 2 * edges) + codes
    if prologue:
        layout = SequenceLayout.of(tokenizer)
        prior = training.prior_model
        each = (
            transformer_flops(prior.transformer, layout.length) + 2.0 * layout.length * prior.width * layout.vocabulary
        )
        total += (_TRAINED if training.shared_prior_pass else _PASSED + _TRAINED) * each
    return training.batch * total


def prior_step_flops(config: RunConfig) -> float:
    """One step of stage 2."""
    layout = SequenceLayout.of(config.tokenizer, config.prior.prologue)
    head = 2.0 * layout.length * config.prior.width * layout.vocabulary
    each = transformer_flops(config.prior.transformer, layout.length) + head
    return config.prior_training.batch * _TRAINED * each
