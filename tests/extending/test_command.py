"""The recipe of docs/extending.md for a command."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prologue.cli.main import COMMANDS, main


def test_a_command_of_ones_own(outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    outside_module("my_commands")
    assert main(["list-classes", "builtin:shapes"]) == 2
    assert "unknown command 'list-classes'" in capsys.readouterr().err
    imported = ["--import", "my_commands"]
    assert main([*imported, "--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in shown if line.startswith("  list-classes ")] == [
        "list the classes of a run"
    ]
    assert main([*imported, "list-classes", "--help"]) == 0
    assert "Class names to print. (default: 3)" in capsys.readouterr().out
    assert main([*imported, "list-classes", "builtin:shapes", "--longest", "2", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*imported, "list-classes", "no-such-run"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main([*imported, "list-clases"]) == 2
    assert "did you mean 'list-classes'?" in capsys.readouterr().err


def presets(argv: list[str]) -> int:
    raise AssertionError("this command has the name of one of the package")


def test_the_packages_commands_have_precedence(
    outside_module: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    COMMANDS.register(presets)
    assert main(["presets"]) == 0
    assert "small-32" in capsys.readouterr().out
