"""Private parts of PyTorch and Accelerate are used in one module alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from torch import nn

import prologue

PACKAGE = Path(prologue.__file__).parent


def private_uses(source: str) -> Iterator[str]:
    """Private names of torch and accelerate: imports, attributes, and overridden methods of `nn.Module`."""
    tree = ast.parse(source)
    foreign = {"torch"}
    for node in ast.walk(tree):
        names: list[tuple[str, str]] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, alias.asname or alias.name.partition(".")[0]) for alias in node.names]
        for full, local in names:
            if full.partition(".")[0] in ("torch", "accelerate"):
                foreign.add(local)
                if any(is_private(part) for part in full.split(".")):
                    yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and is_private(node.name) and hasattr(nn.Module, node.name):
            yield f"def {node.name}"
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in foreign:
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_uses_are_found() -> None:
    source = """
import torch._inductor.config as inductor
from accelerate.state import AcceleratorState as State
State._reset_state()
torch.ops.aten._weight_int8pack_mm(x)
torch.__version__, self._own, prologue._version
class Own(torch.nn.Module):
    def _apply(self): ...
    def _own(self): ...
"""
    assert sorted(private_uses(source)) == [
        "State._reset_state", "def _apply", "torch._inductor.config", "torch.ops.aten._weight_int8pack_mm",
    ]  # fmt: skip


def test_one_module_uses_them() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): uses
        for path in PACKAGE.rglob("*.py")
        if (uses := sorted(set(private_uses(path.read_text(encoding="utf-8")))))
    }
    assert list(found) == ["utils/private_api.py"], found
