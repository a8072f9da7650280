"""What README and docs point at is there: files, commands, presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prologue.cli import COMMANDS
from prologue.presets import names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_and_presets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(names())
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL))
    assert set(re.findall(r"^prologue ([a-z]+)", blocks, flags=re.MULTILINE)) <= set(COMMANDS)
