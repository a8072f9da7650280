"""What tests of commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from prologue.cli.main import main

Refused = Callable[..., None]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Asserts that a command ends with exit code 2 and one error message, which matches all patterns."""

    def check(argv: Sequence[str], *patterns: str) -> None:
        capsys.readouterr()
        assert main(list(argv)) == 2
        message = capsys.readouterr().err
        assert message.count("error: ") == 1, message
        assert "Traceback" not in message
        for pattern in patterns:
            assert re.search(pattern, message), message

    return check
