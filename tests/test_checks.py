"""The workflows and the pre-commit configuration run the checks that the Makefile defines, with its versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in _load(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_of_the_makefile(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, flags=re.MULTILINE))
    commands = [step["run"] for step in _steps(path) if "run" in step]
    called = {match[1] for command in commands if (match := re.match(r"make (\S+)", command))}
    assert called
    assert called <= targets


def test_windows_runs_the_commands_of_the_makefile() -> None:
    """`make` is not part of Windows, so the workflow repeats the commands of `setup` and `test-fast`."""
    install, test = (step["run"] for step in _load(WORKFLOWS[0])["jobs"]["windows"]["steps"] if "run" in step)
    (extras,) = re.findall(r"^EXTRAS := (\S+)$", MAKEFILE, flags=re.MULTILINE)
    (runner,) = re.findall(r"^PYTEST := \$\(BIN\)/(.*)$", MAKEFILE, flags=re.MULTILINE)
    (marks,) = re.findall(r"^test-fast: .*\n\t\$\(PYTEST\) -m '(.*)' ", MAKEFILE, flags=re.MULTILINE)
    assert install.endswith(f'-c constraints.txt -e ".[{extras}]"')
    assert test == f'{runner} -m "{marks}"'


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_oldest_torch_is_the_lower_bound_of_the_range(path: Path) -> None:
    (lower,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = re.findall(r'torch: "([\d.]+)"', path.read_text(encoding="utf-8"))
    assert tested == [f"{lower}.0"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read(path: Path) -> None:
    assert _load(path)["permissions"] == {"contents": "read"}


def test_pre_commit_has_the_pinned_ruff() -> None:
    (ruff,) = re.findall(r"^ruff==(\S+)$", CONSTRAINTS, flags=re.MULTILINE)
    revisions = {repo["repo"]: repo.get("rev") for repo in _load(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert revisions["https://github.com/astral-sh/ruff-pre-commit"] == f"v{ruff}"
