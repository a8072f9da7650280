"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tests.cli.refusals import check_refused

Refused = Callable[..., None]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Asserts that a command ends with exit code 2 and one error message, which matches all patterns."""

    def check(argv: Sequence[str], *patterns: str) -> None:
        check_refused(argv, patterns, capsys)

    return check
