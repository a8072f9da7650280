"""All uses of PyTorch and Accelerate beyond their public interfaces. Each names the versions that it was tried with.

When a new release breaks one of these, this is the only file to change.
"""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Step a fused optimizer on a CPU or CUDA device, unless the tensor `skip` is true. Nothing waits for the device.

    A fused optimizer reads the attribute `found_inf`, which a gradient scaler sets. Tried with torch 2.13.0.
    """
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()


def reset_accelerator_state() -> None:
    """Forget the precision and device of an earlier `Accelerator` of this process. Tried with accelerate 1.15.0."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())


def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x @ (weight · scale).T` on a CPU: x (n, k) bfloat16, weight (m, k) int8, scale (m). Tried with torch 2.13.0.

    The compiler replaces this operator by a kernel that also reads the weights as they are stored.
    """
    product: Tensor = torch.ops.aten._weight_int8pack_mm(x, weight, scale)
    return product


def mark_dynamic(tensor: Tensor, dimension: int) -> None:
    """Compile for any size of this dimension. Tried with torch 2.13.0."""
    torch._dynamo.mark_dynamic(tensor, dimension)


class Fp32Buffers(nn.Module):
    """A module whose own buffers move to its device but keep their number format. Tried with torch 2.13.0."""

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        buffers = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in buffers.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


_COMPILING = threading.RLock()
"""The compiler's settings belong to the whole process."""


@contextmanager
def compiler_settings(settings: Mapping[str, Any], cuda_graphs: bool) -> Iterator[None]:
    """Compile inside the block with these settings of `torch._inductor`, with fixed shapes, and without messages.

    Other threads wait. Options of `torch.compile` would come too late for `freezing`. `cuda_graphs` lets this thread
    record them. Tried with torch 2.13.0.
    """
    import torch._inductor.config as inductor  # slow to import

    fixed_shapes = torch._dynamo.config.patch(automatic_dynamic_shapes=False)
    with _COMPILING, _quiet_autotuning(), inductor.patch(dict(settings)), fixed_shapes:
        if cuda_graphs:
            _let_this_thread_record()
        yield


def _let_this_thread_record() -> None:
    """Create the CUDA graph trees of this thread: older releases create them only in the thread that imports torch."""
    import torch._inductor.cudagraph_trees as trees

    if not hasattr(trees.local, "tree_manager_containers"):
        trees.local.tree_manager_containers = {}
        trees.local.tree_manager_locks = defaultdict(threading.Lock)


@contextmanager
def _quiet_autotuning() -> Iterator[None]:
    """Suppress the tables of autotuning and the compiler's warnings."""
    import torch._inductor.select_algorithm as choice

    quiet: dict[str, Any] = {"PRINT_AUTOTUNE": False, "_log_autotune_choices_stats": lambda *_: None}
    before = {name: getattr(choice, name) for name in quiet if hasattr(choice, name)}
    try:
        for name in before:
            setattr(choice, name, quiet[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            setattr(choice, name, value)
