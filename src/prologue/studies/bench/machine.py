"""What figures of speed depend on beside the request."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TypedDict

import torch


class Machine(TypedDict):
    """Fields of a measurement's provenance."""

    device: str
    device_name: str
    threads: int


def machine(device: torch.device) -> Machine:
    """The device by its kind and by its name, and the threads that torch uses on the CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return Machine(device=device.type, device_name=name, threads=torch.get_num_threads())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
