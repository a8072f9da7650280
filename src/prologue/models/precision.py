"""The number formats that a tokenizer and its prior run in, by name."""

from __future__ import annotations

import torch

from prologue.config import Precision
from prologue.errors import ConfigError
from prologue.models.int8 import quantize_linears
from prologue.models.prior import Prior
from prologue.models.tokenizer import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INT8 = "int8"


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16 products: CUDA of capability 8 or later, CPUs with AVX512-BF16 or AMX.

    A CPU without them emulates bf16 and is slower than in fp32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(probe is not None and probe() for probe in probes)


def pick_precision(precision: Precision, device: torch.device) -> Precision:
    """The training precision named; `auto` is `bf16` where the device has units for its products, else `fp32`.

    On CPUs that have them a training step of small-32 takes 1.2 times less than in fp32, of larger batches up to
    twice less.
    """
    if precision != "auto":
        return precision
    return "bf16" if fast_bf16(device) else "fp32"


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The floating-point type named; `auto` is bf16 where the device has units for it, and fp32 elsewhere.

    An unknown name, a type that is not floating point, or float64 on MPS (which lacks it) is a `ConfigError`.
    """
    choices = ", ".join(("auto", *DTYPES, "int8"))
    if isinstance(dtype, str):
        if dtype == "auto":
            return torch.bfloat16 if fast_bf16(device) else torch.float32
        if dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}: choose one of {choices}, or give a torch dtype")
        return DTYPES[dtype]
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {choices}, or give a torch dtype")
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype {dtype} is not a floating-point type: choose one of {choices}")
    if dtype is torch.float64 and device.type == "mps":
        raise ConfigError("device 'mps' has no float64: choose fp32, or --device cpu")
    return dtype


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
