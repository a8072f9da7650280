"""Copies between host and device that do not wait for the device, so that its queue of work stays filled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to `device` through pinned memory. A copy from other memory would wait for CUDA's queue."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the host; calling the result waits for the work queued before this call."""
    if tensor.device.type != "cuda":
        copied = tensor.to("cpu", copy=True)
        return lambda: copied
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def result() -> Tensor:
        arrived.synchronize()
        return copied

    return result
