"""Everything that is compiled anywhere, compiled whole, on a CPU; and what a graph returns is not kept."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sampling.test_decode import SPLIT

import prologue
from prologue import Guidance, Pipeline
from prologue import pipeline as pipelines
from prologue.sampling.compiling import Compiler
from prologue.sampling.graphs import GRAPHS, Graph

PACKAGE = Path(prologue.__file__).parent
CPU = torch.device("cpu")


class Whole(Compiler):
    """Takes every kind of graph, and compiles it without breaks by the compiler's front alone."""

    def __init__(self, fixed: bool) -> None:
        super().__init__(CPU)
        self.fixed = fixed
        self.kinds: set[type[Graph]] = set()

    def takes(self, kind: type[Graph]) -> bool:
        return True

    @property
    def fixed_shapes(self) -> bool:
        return self.fixed

    def compile(self, graph: Graph, what: str) -> Callable[..., Any]:
        self.kinds.add(type(graph))
        return super().compile(graph, what)

    def whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend="eager", fullgraph=True)


class Replayed(Whole):
    """As recorded graphs are: what they returned is spoilt when the next position begins."""

    def __init__(self) -> None:
        super().__init__(fixed=True)
        self.returned: list[torch.Tensor] = []

    @torch.inference_mode()
    def begin(self) -> None:
        for result in self.returned:
            result.fill_(torch.nan if result.is_floating_point() else 0)
        self.returned.clear()

    def whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            out = function(*args)
            self.returned.extend(out if isinstance(out, tuple) else (out,))
            return out

        return call


def drawn(pipe: Pipeline, guidance: Guidance) -> list[Any]:
    """With several chunks, the last of which is not full."""
    out = pipe.generate([0, 2], count=5, seed=3, batch=2, guidance=guidance)
    return [out.tokens.prologue.tolist(), out.tokens.visual.tolist(), [image.tobytes() for image in out.images]]


CASES = {
    "whole": (lambda: Whole(fixed=False), {}),
    "whole, fixed shapes, no prologue": (lambda: Whole(fixed=True), {"variant": "1d", "tied": True}),
    "replayed": (Replayed, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_graph_compiles_whole_and_computes_the_same(
    tiny_models, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    torch._dynamo.reset()
    make, options = CASES[case]
    compiler, models = make(), tiny_models(**options)
    monkeypatch.setattr(pipelines, "Compiler", lambda *_: compiler)
    for guidance in (SPLIT, Guidance.none()):
        assert drawn(Pipeline(*models, compile=True), guidance) == drawn(Pipeline(*models, compile=False), guidance)
    assert compiler.kinds == set(GRAPHS), "a graph that nothing compiles, or that this test does not reach"


def test_nothing_else_is_given_to_the_compiler() -> None:
    found = [
        (path.name, call.lineno)
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).startswith(("torch.compile", "torch.jit"))
        and not ast.unparse(call.func).startswith("torch.compiler")
    ]
    assert [name for name, _ in found] == ["compiling.py"]
    assert all(issubclass(kind, Graph) for kind in GRAPHS)
