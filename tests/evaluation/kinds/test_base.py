"""What kinds of evaluation share."""

from __future__ import annotations

from prologue.evaluation.kinds.base import row


def test_a_row_shows_an_interval_only_if_the_record_has_one() -> None:
    assert row("entropy", {"h": 1.25}, "h", ".1f") == ("entropy", "1.2", "")
    assert row("entropy", {"h": 1.25, "h_low": 1.0, "h_high": 1.5}, "h", ".1f") == ("entropy", "1.2", "1.0 … 1.5")
