"""Guidance on the command line."""

from __future__ import annotations

import pytest

from prologue.errors import ConfigError, SamplingError
from prologue.sampling.flags import parse_guidance
from prologue.sampling.guidance import Guidance


@pytest.mark.parametrize(
    ("text", "guidance"),
    [
        ("none", Guidance.none()),
        ("overall:cosine:10:1.5", Guidance.overall("cosine", 10, 1.5)),
        ("split:constant:0.7,cosine:3.75:0.2", Guidance.split(("constant", 0.7), ("cosine", 3.75, 0.2))),
    ],
)
def test_forms(text: str, guidance: Guidance) -> None:
    assert parse_guidance(text) == guidance


@pytest.mark.parametrize(
    "text", ["", "none:1", "overall", "overall:cosine", "overall:cosine:x", "split:constant:1", "split:a:1,b:2,c:3"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--guidance"):
        parse_guidance(text)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(SamplingError, match="cubic"):
        parse_guidance("overall:cubic:2")
