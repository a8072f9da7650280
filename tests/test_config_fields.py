"""Every configuration field is read somewhere. Reads are attributed to the type of the owner, so that
`config.prior_training.steps` does not count as a read of `config.tokenizer_training.steps`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from pathlib import Path

import pytest
from mypy.build import build
from mypy.modulefinder import BuildSource
from mypy.options import Options

from prologue import config as config_module

pytestmark = pytest.mark.slow

PACKAGE = Path(config_module.__file__).parent
CONFIG = config_module.__name__
NOT_READERS = ("presets.py", "cli/presets.py")
"""Modules that only state or print values."""
PLANTED = ("steps", "width")
"""Unread fields that the test adds to `DataConfig` and must find; other configurations have fields of these names."""
PLUGIN = """
from mypy.plugin import Plugin

READS = set()

class Recorder(Plugin):
    def get_attribute_hook(self, fullname):
        def record(context):
            READS.add((fullname, context.api.path, context.context.line))
            return context.default_attr_type
        return record if fullname.startswith("prologue.config.") else None

    def get_function_hook(self, fullname):
        def record(context):
            for kind in context.arg_types[0]:
                for each in getattr(kind, "items", [kind]):
                    owner = getattr(getattr(each, "type", None), "fullname", "")
                    if owner.startswith("prologue.config."):
                        READS.add((owner + ".*", context.api.path, context.context.line))
            return context.default_return_type
        return record if fullname == "builtins.getattr" else None

def plugin(version):
    return Recorder
"""
"""A mypy plugin that records every attribute that is read, with the class that owns it."""


def planted_source() -> str:
    """Return the source of config.py with the fields of `PLANTED` in `DataConfig`."""
    source = Path(config_module.__file__).read_text(encoding="utf-8")
    line = "    cache_mb: int = 1024\n"
    assert source.count(line) == 1
    return source.replace(line, "".join(f"    {name}: int = 1\n" for name in PLANTED) + line)


def seen_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str, int]]:
    """Return the reads in the package as (full name, file, line); the name ends in `.*` for `getattr`."""
    (folder / "prologue_reads.py").write_text(PLUGIN)
    sources = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources.append(BuildSource(str(path), name, planted_source() if name == CONFIG else None))
    options = Options()
    options.config_file = str(folder / "mypy.ini")
    options.plugins = [str(folder / "prologue_reads.py")]
    options.incremental = False
    options.follow_imports = "skip"  # of other packages no types are needed
    monkeypatch.delitem(sys.modules, "prologue_reads", raising=False)
    build(sources, options)
    found: set[tuple[str, str, int]] = sys.modules["prologue_reads"].READS
    return found


def test_every_field_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions: dict[str, list[ast.FunctionDef]] = {}
    read = set()
    for fullname, path, line in seen_reads(tmp_path, monkeypatch):
        where = Path(path)
        if where.relative_to(PACKAGE).as_posix() in NOT_READERS:
            continue
        if path not in functions:
            own = where == Path(config_module.__file__)
            tree = ast.parse(planted_source() if own else where.read_text(encoding="utf-8"))
            functions[path] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        around = [function for function in functions[path] if function.lineno <= line <= (function.end_lineno or 0)]
        defined = not around and where == Path(config_module.__file__)
        if defined or any(function.name == "__post_init__" for function in around):
            continue  # there a value is stated, or checked, and nothing is done with it
        owner, field = fullname.removeprefix(f"{CONFIG}.").split(".")
        constants = {node.value for function in around for node in ast.walk(function) if isinstance(node, ast.Constant)}
        read |= {(owner, name) for name in (constants if field == "*" else {field})}
    found = inspect.getmembers(config_module, dataclasses.is_dataclass)
    kinds = [kind for _, kind in found if kind.__module__ == CONFIG]
    assert len(kinds) >= 10
    fields = {(kind.__name__, field.name) for kind in kinds for field in dataclasses.fields(kind)}
    planted = {("DataConfig", name) for name in PLANTED}
    assert not planted & fields
    unread = (fields | planted) - read
    assert planted <= unread  # those that nothing reads are found
    assert sorted(unread - planted) == []
