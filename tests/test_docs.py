"""Files, commands and presets that the README and the docs name exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prologue.cli.main import COMMANDS
from prologue.presets import names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_python_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert [image.size for image in found["images"]] == [(32, 32)] * 8


def test_the_figures_of_the_readme_are_those_of_the_card() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    card = json.loads((ROOT / "src/prologue/builtin/shapes/card.json").read_text(encoding="utf-8"))
    rates = [card["measures"][kind]["recognition"] for kind in ("guided", "unguided")]
    told = re.search(r"recognises the asked class in ([\d.]+) % of ([\d,]+), and in ([\d.]+) %", text)
    assert told is not None
    assert told.groups() == (f"{100 * rates[0]['rate']:.0f}", f"{rates[0]['n']:,}", f"{100 * rates[1]['rate']:.0f}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_and_presets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(names())
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL))
    assert set(re.findall(r"^prologue ([a-z]+)", blocks, flags=re.MULTILINE)) <= set(COMMANDS)
