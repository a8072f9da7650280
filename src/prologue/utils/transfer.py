"""Tensors between host and device without a wait: a step only queues work, so that the device never runs dry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`. From memory that is not pinned, CUDA would wait for its queue to be empty first."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; the result waits for what was queued before this call, and no more."""
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
