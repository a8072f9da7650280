"""The device on which a command runs."""

from __future__ import annotations

import re

import torch

from prologue.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")

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
    """Return the named device; `auto` picks CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: the name is unknown or the device is not available.
    """
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


def out_of_memory(error: BaseException) -> bool:
    """Return whether the error reports a lack of memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
