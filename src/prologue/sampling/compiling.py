"""`torch.compile` for the decode loop: settings per device, and a fallback if the compiler is missing."""

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
"""Called with the name of a graph and None before it is compiled, then with the seconds that it took."""


class Compiler:
    """Compiles graphs for one device. Without a C++ compiler or Triton they run eagerly, with one warning.

    The next call of a compiled graph may overwrite the results of the previous call. Copy results that are kept.
    """

    def __init__(self, device: torch.device, report: Report | None = None) -> None:
        self.device = device
        self.report = report
        self._said = False

    def takes(self, kind: type[Graph]) -> bool:
        """Whether this kind of graph is compiled on this device."""
        return self.device.type in kind.devices

    @property
    def fixed_shapes(self) -> bool:
        """Whether steps have the same shapes at all positions, as CUDA graphs need."""
        return self.device.type != "cpu"

    def begin(self) -> None:
        """Call this before the first graph of each position and of each batch. It invalidates earlier results."""
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def compile(self, graph: Graph, what: str) -> Callable[..., Any]:
        """`graph`, compiled as a whole at its first call. Errors other than missing tools are raised."""
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
        """`function` compiled as one graph."""
        compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, mode=_MODES.get(self.device.type))
        return compiled

    def _warn(self, error: Exception) -> None:
        if self._said:
            return
        self._said = True
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        warnings.warn(
            f"sampling continues without compiling, which is slower ({type(error).__name__}: {reason}): "
            "install a C++ compiler (on a GPU, Triton), or turn compiling off with compile=False",
            stacklevel=4,
        )

    def _say(self, what: str, seconds: float | None) -> None:
        if self.report is not None:
            self.report(what, seconds)


_MISSING = {"InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"}
"""Names of torch's errors for missing tools. Their modules differ between releases."""
_SAYS_MISSING = re.compile(
    "No working C\\+\\+ compiler found|Cannot find a working triton installation|Failed to find C compiler"
    "|too old to be supported by the triton GPU compiler|torch.compile is not supported on"
)
"""Text in messages about missing tools, from compiler processes, Triton and torch.compile."""
_HALF_INSTALLED = re.compile(
    "No such file|file not found|cannot find -l|library not found|cannot execute|not permitted"
)
"""Messages of a C++ compiler with missing headers, libraries or programs."""


def lacks_tools(error: BaseException) -> bool:
    """Whether an error means that the tools for compiling are missing or incomplete."""
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
"""This mode uses CUDA graphs, because the launches of a step take longer than its work."""
_CPU = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
"""Freezing lays weights out for products with few rows; autotuning measures the fastest product kernel."""


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the function with a new code object.

    The compiler finds a graph by its code object and does not compare frozen weights: another prior of the same sizes
    would run with the weights of the first.
    """

    def call(*args: Any) -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace()  # a new object with equal contents
    return call


def _first(graph: Callable[..., Any], args: tuple[Any, ...], device: torch.device) -> Any:
    """The first call, which compiles; dimensions that are not marked as dynamic are fixed."""
    with compiler_settings(_CPU if device.type == "cpu" else {}, cuda_graphs=device.type == "cuda"):
        return graph(*args)


_EAGER_STEP_SECONDS = 150e-6
"""Time of the kernel launches of one block, on the host of a GPU."""
_RATES = {"cpu": (10e9, 60e9), "cuda": (1e12, 50e12)}
"""Approximate bytes and operations per second of an eager step."""
_COMPILING_SECONDS = {"cpu": 90.0, "cuda": 60.0}
_WORTH = 3.0
"""Work is compiled if it takes this many times as long as compiling. A compiled step takes about half the time."""


def worth_compiling(config: PriorConfig, device: torch.device, weight_bytes: int, rows: int, batches: int) -> bool:
    """Whether compiling saves time when `batches` of `rows` sequences are drawn.

    The answer depends on the work alone, not on a clock, so all processes of a run decide alike.
    """
    if device.type not in _RATES:
        return False
    bandwidth, operations = _RATES[device.type]
    size = config.transformer
    weights = size.depth * (4 * size.width**2 + 3 * size.width * size.hidden)
    step = max(size.depth * _EAGER_STEP_SECONDS, weight_bytes / bandwidth, 2 * weights * rows / operations)
    length = config.layout.visual_tokens
    return batches * length * step > _WORTH * _COMPILING_SECONDS[device.type]
