"""What every refusal of a command has in common."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from prologue.cli.main import main


def check_refused(argv: Sequence[str], patterns: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Assert exit code 2 and one error message, which matches all patterns. Returns standard error."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1, message
    assert "Traceback" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message
    return message


def refused_evaluation(argv: Sequence[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`check_refused` for the arguments of `prologue evaluate`, whose message is the last line."""
    message = check_refused(["evaluate", *argv], [named], capsys)
    assert message.splitlines()[-1].startswith("error: ")
