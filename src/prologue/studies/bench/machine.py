"""The machine, as the provenance of a measurement of speed states it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TypedDict

import torch


class Machine(TypedDict):
    """Fields of the provenance."""

    device: str
    device_name: str
    threads: int


def machine(device: torch.device) -> Machine:
    """Type and name of the device, and the number of CPU threads of torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return Machine(device=device.type, device_name=name, threads=torch.get_num_threads())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
