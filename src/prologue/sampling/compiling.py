"""`torch.compile` as the decode loop uses it: what to ask of it on each device, and what to do where it is missing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from prologue.config import PriorConfig

Report = Callable[[str, float | None], None]
"""Called with what is compiled: before it begins with None, then with the seconds it took."""

_MOST_GRAPHS = 256
"""Row counts and priors that one process may compile; torch's own limit of 8 is meant for training loops."""


class Compiler:
    """Compiles functions for one device; where that fails, says so once and hands back the function itself."""

    def __init__(self, device: torch.device, report: Report | None = None) -> None:
        self.device = device
        self.report = report
        self.seconds = 0.0
        """Spent on compiling so far."""
        self._broken = False

    def compile(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        """`function` as one graph without breaks, compiled at its first call."""
        if self._broken:
            return function
        graph = torch.compile(function, fullgraph=True, **_options(self.device))
        ready = False

        def call(*args: Any) -> Any:
            nonlocal ready
            if ready:
                return graph(*args)
            if self._broken:
                return function(*args)
            self._say(what, None)
            begin = time.perf_counter()
            try:
                out = self._first(graph, args)
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                    raise
                self._broken = True
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"sampling goes on without compiling, which is slower ({type(error).__name__}: {reason[:200]}); "
                    "a C++ compiler (on a GPU, Triton) is needed, or leave it out with compile=False",
                    stacklevel=2,
                )
                return function(*args)
            ready = True
            seconds = time.perf_counter() - begin
            self.seconds += seconds
            self._say(what, seconds)
            return out

        return call

    def _say(self, what: str, seconds: float | None) -> None:
        if self.report is not None:
            self.report(what, seconds)

    @staticmethod
    def _first(graph: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The first call, which compiles: every row count for itself, shapes that are not marked being fixed."""
        import torch._inductor.select_algorithm as choice  # heavy, and only now needed

        shown, choice.PRINT_AUTOTUNE = choice.PRINT_AUTOTUNE, False
        try:
            with torch._dynamo.config.patch(
                automatic_dynamic_shapes=False, recompile_limit=_MOST_GRAPHS, accumulated_recompile_limit=_MOST_GRAPHS
            ):
                return graph(*args)
        finally:
            choice.PRINT_AUTOTUNE = shown


def _options(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"mode": "max-autotune"}  # with CUDA graphs: a step's launches cost more than its work
    if device.type == "cpu":
        # Frozen weights are laid out anew for products with few rows; of the product kernels the fastest is measured.
        return {"options": {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}}
    return {}


_EAGER_STEP_SECONDS = 150e-6
"""What a block costs in a step for its calls alone, on a GPU's host."""
_RATES = {"cpu": (10e9, 60e9), "cuda": (1e12, 50e12)}
"""Bytes and operations per second of an eager step, roughly."""
_COMPILING_SECONDS = {"cpu": 90.0, "cuda": 60.0}
_WORTH = 3.0
"""Work that would take so many times as long as compiling is compiled; that saves about half of it."""


def worth_compiling(config: PriorConfig, device: torch.device, weight_bytes: int, rows: int, batches: int) -> bool:
    """Whether `batches` of `rows` sequences are enough work for compiling to pay.

    A function of the work alone and of no clock: every process of a run decides alike, and every time.
    """
    if device.type not in _RATES:
        return False
    bandwidth, operations = _RATES[device.type]
    size = config.transformer
    weights = size.depth * (4 * size.width**2 + 3 * size.width * size.hidden)
    step = max(size.depth * _EAGER_STEP_SECONDS, weight_bytes / bandwidth, 2 * weights * rows / operations)
    length = config.layout.visual_tokens
    return batches * length * step > _WORTH * _COMPILING_SECONDS[device.type]
