"""`torch.compile` as the decode loop uses it: what to ask of it on each device, and what to do where it is missing."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from prologue.config import PriorConfig
from prologue.sampling.graphs import Graph
from prologue.utils.private_api import compiler_settings

Report = Callable[[str, float | None], None]
"""Called with what is compiled: before it begins with None, then with the seconds it took."""


class Compiler:
    """Compiles graphs for one device; where the tools for that are missing they run as they are, which is said once.

    Results of a compiled graph may lie in memory that its next call overwrites: what is kept has to be copied.
    """

    def __init__(self, device: torch.device, report: Report | None = None) -> None:
        self.device = device
        self.report = report
        self._said = False

    def takes(self, kind: type[Graph]) -> bool:
        """Whether this kind of graph is compiled on the device."""
        return self.device.type in kind.devices

    @property
    def fixed_shapes(self) -> bool:
        """Whether steps must have one shape at all positions, so that they can be recorded (CUDA graphs)."""
        return self.device.type != "cpu"

    def begin(self) -> None:
        """To be called before the first graph of each position and of each batch: earlier results are let go of."""
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def compile(self, graph: Graph, what: str) -> Callable[..., Any]:
        """`graph` without breaks, compiled at its first call. Errors other than missing tools pass through."""
        chosen: Callable[..., Any] | None = None

        def call(*args: Any) -> Any:
            nonlocal chosen
            if chosen is not None:
                return chosen(*args)
            self._say(what, None)
            begin = time.perf_counter()
            try:
                compiled = self.whole(_apart(graph))
                out = _first(compiled, args, self.device)
                chosen = compiled
            except Exception as error:
                if not lacks_tools(error):
                    raise
                self._warn(error)
                chosen = graph
                return graph(*args)
            self._say(what, time.perf_counter() - begin)
            return out

        return call

    def whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as one graph, for the device."""
        compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, mode=_MODES.get(self.device.type))
        return compiled

    def _warn(self, error: Exception) -> None:
        if self._said:
            return
        self._said = True
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        warnings.warn(
            f"sampling goes on without compiling, which is slower ({type(error).__name__}: {reason}): "
            "install a C++ compiler (on a GPU, Triton), or leave it out with compile=False",
            stacklevel=4,
        )

    def _say(self, what: str, seconds: float | None) -> None:
        if self.report is not None:
            self.report(what, seconds)


_MISSING = {"InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"}
"""Names of torch's errors for tools that are not there; they moved between its modules from release to release."""
_SAYS_MISSING = re.compile(
    "No working C\\+\\+ compiler found|Cannot find a working triton installation|Failed to find C compiler"
    "|too old to be supported by the triton GPU compiler|torch.compile is not supported on"
)
"""The same where only the text comes through: from processes that compile, from Triton, from torch.compile itself."""
_HALF_INSTALLED = re.compile(
    "No such file|file not found|cannot find -l|library not found|cannot execute|not permitted"
)
"""In what a C++ compiler printed: its headers, libraries or own parts are missing."""


def lacks_tools(error: BaseException) -> bool:
    """Whether an error says that the tools which compiling needs are missing or incomplete here."""
    seen: list[BaseException] = []
    following: list[Any] = [error]
    while following:
        each = following.pop()
        if not isinstance(each, BaseException) or each in seen:
            continue
        seen.append(each)
        name = type(each).__name__
        if name in _MISSING or _SAYS_MISSING.search(str(each)):
            return True
        if name == "CppCompileError" and _HALF_INSTALLED.search(str(each)):
            return True
        following += [each.__cause__, getattr(each, "inner_exception", None)]
    return False


_MODES = {"cuda": "max-autotune"}
"""With CUDA graphs: a step's launches cost more than its work."""
_CPU = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
"""Frozen weights are laid out anew for products with few rows; of the product kernels the fastest is measured."""


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with code of its own.

    Graphs are found again by the code that they were made of, and frozen weights are no part of what is compared:
    another prior of the same sizes would run with the weights of the first.
    """

    def call(*args: Any) -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace()  # an equal one, but not the same
    return call


def _first(graph: Callable[..., Any], args: tuple[Any, ...], device: torch.device) -> Any:
    """The first call, which compiles: shapes that are not marked are fixed."""
    with compiler_settings(_CPU if device.type == "cpu" else {}, cuda_graphs=device.type == "cuda"):
        return graph(*args)


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
