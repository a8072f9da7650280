"""The number formats that a tokenizer and its prior run in, by name."""

from __future__ import annotations

import torch

from prologue.device import pick_dtype
from prologue.nn.int8 import quantize_linears
from prologue.prior import Prior
from prologue.tokenizer import Tokenizer

INT8 = "int8"


def convert(
    tokenizer: Tokenizer, prior: Prior, dtype: str | torch.dtype, device: torch.device
) -> tuple[Tokenizer, Prior]:
    """Both models on `device` in `dtype`, in place: `auto`, `fp32`, `bf16`, `int8`, or a floating-point torch dtype.

    `int8` stores the prior's linear layers as int8 with a scale for each output, and computes in bf16; the tokenizer
    then takes what `auto` picks. Unknown names and formats that the device lacks are a `ConfigError`.
    """
    if dtype != INT8:
        kind = pick_dtype(dtype, device)
        return tokenizer.to(device, kind), prior.to(device, kind)
    # Quantised from the weights as they are given: rounding them to bf16 first would round twice.
    quantize_linears(prior, torch.bfloat16)
    return tokenizer.to(device, pick_dtype("auto", device)), prior.to(device, torch.bfloat16)


def check_dtype(dtype: str | torch.dtype, device: torch.device) -> None:
    """Raise the `ConfigError` of `convert` before any weights are read."""
    if dtype != INT8:
        pick_dtype(dtype, device)
