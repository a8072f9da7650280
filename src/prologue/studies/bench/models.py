"""The models of a bench: any prior with any tokenizer, with random weights, in any precision."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from prologue import presets
from prologue.config import PriorOptions, TokenizerConfig
from prologue.errors import ConfigError, did_you_mean
from prologue.models.layers import INIT_STD, NEAR_ZERO_STD, Linear
from prologue.models.precision import convert, pick_dtype
from prologue.models.prior import Prior
from prologue.models.sequence import SequenceLayout
from prologue.models.tokenizer import Tokenizer
from prologue.utils.rng import torch_stream

PRECISIONS = ("auto", "fp32", "bf16", "int8")
PAPER_TOKENIZERS = ("base", "large")
PAPER_PRIORS = ("s", "b", "l", "xl")
CLASSES = 1000
"""Classes of the priors in the paper. The number does not affect the time."""

Compile = Literal["auto"] | bool
Models = tuple[Tokenizer, Prior]


def tokenizer_config(name: str) -> TokenizerConfig:
    """The tokenizer `base` or `large`, or that of a preset. Raises `ConfigError` for another name."""
    if name in PAPER_TOKENIZERS:
        return presets.preset(f"{name}-b").tokenizer
    return presets.preset(_known(name, "tokenizer", PAPER_TOKENIZERS)).tokenizer


def prior_options(name: str) -> PriorOptions:
    """The prior `s`, `b`, `l` or `xl`, or that of a preset. Raises `ConfigError` for another name."""
    if name in PAPER_PRIORS:
        return presets.preset(f"base-{name}").prior
    return presets.preset(_known(name, "prior", PAPER_PRIORS)).prior


def _known(name: str, what: str, short: tuple[str, ...]) -> str:
    if name in presets.names():
        return name
    choices = [*short, *presets.names()]
    hint = did_you_mean(name, choices)
    raise ConfigError(f"unknown {what} {name!r}: {hint}choose {', '.join(short)}, or a preset")


def random_models(prior: str, tokenizer: str, seed: int) -> Models:
    """Both models on the CPU in fp32, with random weights of `seed`."""
    config, options = tokenizer_config(tokenizer), prior_options(prior)
    layout = SequenceLayout.of(config, prologue=options.prologue).config
    built = options.sized(layout, CLASSES)
    models = Tokenizer(config, seed).eval(), Prior(built, seed).eval()
    for model in models:
        _wake(model)
    return models


@torch.no_grad()
def _wake(model: torch.nn.Module) -> None:
    """Scale near-zero output layers of a new model up, so that errors of the blocks reach the logits."""
    for module in model.modules():
        if isinstance(module, Linear) and module.std == NEAR_ZERO_STD:
            module.weight.mul_(INIT_STD / NEAR_ZERO_STD)


def resolve(precision: str, device: torch.device) -> str:
    """The name of the precision. `auto` becomes the precision of this device."""
    if precision != "auto":
        return precision
    picked = pick_dtype("auto", device)
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(picked, str(picked))


def converted(models: Models, precision: str, device: torch.device) -> Models:
    """Copies of the models in this precision."""
    tokenizer, prior = deepcopy(models)
    return convert(tokenizer, prior, precision, device)


@dataclass(frozen=True)
class Agreement:
    """Differences of teacher-forced logits to those in fp32, over the allowed ids of each position.

    All fields are None if this was not measured.
    """

    max_error: float | None
    mean_error: float | None
    top1: float | None
    """Part of the positions with the same most likely id."""


@torch.inference_mode()
def agreement(reference: Prior, other: Prior, seed: int, sequences: int = 4) -> Agreement:
    """Compare two priors on random sequences, one at a time. EOS is excluded, since it is certain."""
    layout, device = reference.layout, reference.token_embedding.weight.device
    allowed = layout.allowed(device)
    drawn = allowed.sum(-1) > 1
    means, largest, same = 0.0, 0.0, 0.0
    for index in range(sequences):
        ids, class_ids = (part.to(device) for part in _random_sequence(layout, reference.num_classes, seed, index))
        exact, near = reference(ids, class_ids)[0], other(ids, class_ids)[0]
        error = (exact - near).abs()[allowed & drawn[:, None]]
        means += float(error.double().mean())
        largest = max(largest, float(error.max()))
        best, found = (logits.masked_fill(~allowed, -torch.inf)[drawn].argmax(-1) for logits in (exact, near))
        same += float((best == found).double().mean())
    return Agreement(largest, means / sequences, same / sequences)


def _random_sequence(
    layout: SequenceLayout, num_classes: int, seed: int, index: int
) -> tuple[Int[Tensor, "1 T"], Int[Tensor, " 1"]]:
    generator = torch_stream(seed, "bench", index)
    parts = [
        torch.randint(segment.first_id, segment.last_id, (1, segment.stop - segment.start), generator=generator)
        for segment in layout.segments
    ]
    return torch.cat(parts, dim=1), torch.randint(num_classes + 1, (1,), generator=generator)
