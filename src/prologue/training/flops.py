"""FLOPs of a training step, counted by `torch.utils.flop_counter` on one image; a multiply-add counts as two."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prologue.config import RunConfig
from prologue.models.discriminator import PatchDiscriminator
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Encoding, Tokenizer
from prologue.training.loop import frozen_call
from prologue.utils.serialization import from_dict, to_dict


def tokenizer_step_flops(config: RunConfig) -> float:
    """FLOPs of one step of stage 1: tokenizer, stage-1 prior and discriminator, without perceptual network and R1.

    The first call for a configuration builds the networks and runs them on the CPU.
    """
    return config.tokenizer_training.batch * _of_tokenizer(_key(config))


def prior_step_flops(config: RunConfig) -> float:
    """FLOPs of one step of stage 2; the first call for a configuration runs the prior on the CPU."""
    return config.prior_training.batch * _of_prior(_key(config))


def _key(config: RunConfig) -> str:
    """The configuration as a hashable value."""
    return json.dumps(to_dict(dataclasses.replace(config, seed=0)))


@lru_cache
def _of_tokenizer(key: str) -> float:
    config = from_dict(RunConfig, json.loads(key))
    training = config.tokenizer_training
    tokenizer = Tokenizer(config.tokenizer)
    images = torch.zeros(1, 3, *config.tokenizer.image_size)
    if config.tokenizer.traits.post_hoc:
        for module in tokenizer.visual_path():
            module.requires_grad_(False)
    with _counter() as counter:
        encoding, reconstruction = tokenizer(images, reconstruct=not config.tokenizer.traits.post_hoc)
        loss = encoding.visual.loss
        if reconstruction is not None:
            loss = loss + reconstruction.sum()
            if training.gan:
                discriminator = PatchDiscriminator(training.gan_channels, generator=torch.Generator())
                loss = loss + frozen_call(discriminator, reconstruction).sum()
                (discriminator(images) + discriminator(reconstruction.detach())).sum().backward()
        if encoding.prologue is not None or training.one_stage:
            loss = loss + _prior_loss(config, encoding)
        loss.backward()
    return float(counter.get_total_flops())


def _prior_loss(config: RunConfig, encoding: Encoding) -> Tensor:
    """The prior's term in the loss of the encoder, with a separate pass unless the two steps share one."""
    layout = SequenceLayout.of(config.tokenizer)
    prior = Prior(config.tokenizer_training.prior_model.sized(layout.config, 0))
    sequence, null = layout.join(encoding.tokens), torch.zeros(1, dtype=torch.int64)
    if encoding.prologue is not None and config.tokenizer_training.shared_prior_pass:
        logits: Tensor = prior(sequence, null, prologue_one_hot=encoding.prologue.one_hot)
        return logits.sum()
    prior(sequence, null).sum().backward()
    if encoding.prologue is None:
        return torch.zeros(())
    logits = frozen_call(prior, sequence, null, prologue_one_hot=encoding.prologue.one_hot)
    return logits.sum()


@lru_cache
def _of_prior(key: str) -> float:
    config = from_dict(RunConfig, json.loads(key))
    layout = SequenceLayout.of(config.tokenizer, config.prior.prologue)
    prior = Prior(config.prior.sized(layout.config, 0))
    with _counter() as counter:
        prior(torch.zeros(1, layout.length, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)).sum().backward()
    return float(counter.get_total_flops())


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    # The counter has no formula for the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
