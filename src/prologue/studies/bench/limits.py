"""The limits of the machine: the rate of reading memory, and of products with few rows and weights in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prologue.config import PriorConfig
from prologue.models.precision import pick_precision
from prologue.studies.bench.work import matrices

BEYOND_CACHES = {"cpu": 512 << 20, "cuda": 2 << 30, "mps": 512 << 20}
"""Bytes, by device type, that exceed every cache."""


def synchronise(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, with an idle device before and after it."""
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


@torch.inference_mode()
def memory_bandwidth(device: torch.device, size: int | None = None, repeats: int = 5) -> float:
    """Bytes per second of reading a buffer of `size` bytes. The default size exceeds the caches.

    The result is the best of several sums and matrix-vector products.
    """
    columns = 4096
    rows = max(1, (BEYOND_CACHES[device.type] if size is None else size) // (4 * columns))
    buffer = torch.ones(rows, columns, device=device)
    vector = torch.ones(columns, device=device)
    passes: tuple[Callable[[], Tensor], ...] = (buffer.sum, lambda: buffer @ vector)
    best = min(seconds_of(read, device) for _ in range(repeats + 1) for read in passes)
    return buffer.numel() * 4 / best


@torch.inference_mode()
def gemm_rate(
    config: PriorConfig,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    size: int | None = None,
    repeats: int = 5,
) -> float:
    """FLOP per second of `F.linear` with `rows` rows through the matrices of one decode step of the prior.

    The matrices are repeated up to at least `size` bytes, so that the weights are read from memory. The default size
    exceeds the caches. The result is the best of `repeats` passes.
    """
    once = matrices(config)
    least = (BEYOND_CACHES[device.type] if size is None else size) // 2
    copies = max(1, -(-least // sum(outputs * inputs * dtype.itemsize for outputs, inputs in once)))
    weights = [torch.full(shape, 0.01, dtype=dtype, device=device) for shape in once * copies]
    x = {inputs: torch.ones(rows, inputs, dtype=dtype, device=device) for _, inputs in once}

    def multiply() -> None:
        for weight in weights:
            F.linear(x[weight.shape[1]], weight)

    run = _graphed(multiply) if device.type == "cuda" else multiply
    run()
    best = min(seconds_of(run, device) for _ in range(repeats))
    return 2 * rows * sum(weight.numel() for weight in weights) / best


def _graphed(work: Callable[[], None]) -> Callable[[], None]:
    """The work as one CUDA graph. Single launches would take longer than products with few rows."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return lambda: graph.replay()


def compute_types(precision: str, device: torch.device) -> tuple[torch.dtype, ...]:
    """The number formats in which products of this precision may be computed. The fastest one is the limit."""
    if precision == "fp32":
        return (torch.float32,)
    units = pick_precision("auto", device) == "bf16"
    return (torch.float32, torch.bfloat16) if units else (torch.float32,)
