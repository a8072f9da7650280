"""What this machine can do at best: reading memory, and products with few rows whose weights come from memory."""

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
"""Bytes by device type that no cache holds."""


def synchronise(device: torch.device) -> None:
    """Wait until everything that was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, from an idle device to an idle device."""
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


@torch.inference_mode()
def memory_bandwidth(device: torch.device, size: int | None = None, repeats: int = 5) -> float:
    """Bytes per second of reading a buffer of `size` bytes (left out: well beyond the caches).

    The best of several passes of a sum and of a matrix-vector product, since neither is the faster everywhere.
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
    """FLOP per second of `F.linear` with `rows` rows through all matrices of one decode step of the prior, in order.

    The set of matrices is repeated until it has at least `size` bytes (left out: beyond the caches), so that its
    weights are read from memory as a decode step reads them. The best of `repeats` passes.
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
    """The same work as one CUDA graph: launches one by one would take longer than products of a few rows."""
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
    """The number formats that a product of this precision may be computed in; the fastest of them is its limit."""
    if precision == "fp32":
        return (torch.float32,)
    units = pick_precision("auto", device) == "bf16"
    return (torch.float32, torch.bfloat16) if units else (torch.float32,)
