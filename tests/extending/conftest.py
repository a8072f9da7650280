"""Code outside the package: the code blocks of docs/extending.md, as modules that a user could have written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prologue.cli.main import COMMANDS, IMPORTED
from prologue.data.source import SOURCES
from prologue.evaluation.feature_networks import FEATURES
from prologue.evaluation.kinds import KINDS
from prologue.models.quantizers import PROLOGUE_QUANTIZERS, QUANTIZERS
from prologue.presets import PRESETS
from prologue.sampling.guidance import SCHEDULES
from prologue.training.losses import LOSSES
from prologue.utils.registry import Registry

DOCS = Path(__file__).parents[2] / "docs"
REGISTRIES: tuple[Registry[Any], ...] = (
    QUANTIZERS,
    PROLOGUE_QUANTIZERS,
    PRESETS,
    LOSSES,
    SCHEDULES,
    SOURCES,
    KINDS,
    FEATURES,
    COMMANDS,
)


@pytest.fixture
def outside_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Save the block of the docs that begins with `# NAME.py` in a folder of `sys.path`.

    What it registers is forgotten after the test. Calling again also forgets it, as a new process would.
    """
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_components", dict(registry._components))
    known = {registry: dict(registry._components) for registry in REGISTRIES}
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(IMPORTED, "")

    def make(name: str) -> None:
        text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")))
        (block,) = re.findall(rf"```python\n(# {name}\.py\n.*?)```", text, re.DOTALL)
        (folder / f"{name}.py").write_text(block, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setenv(IMPORTED, "")
        for registry, components in known.items():
            registry._components = dict(components)

    return make
