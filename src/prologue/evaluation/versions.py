"""Versions of the figures: what the stores of figures know of the code that computed them."""

from __future__ import annotations

VERSIONS = {
    "features": 1,
    "reconstruction": 1,
    "generation": 1,
    "reference": 1,
    "likelihood": 1,
    "probe": 1,
    "layout": 1,
    "intervention": 1,
    "attention": 1,
    "memorisation": 1,
    "codebook": 1,
    "sweep": 1,
}
"""One for each kind of `prologue evaluate`, and one for the features of the package, which all kinds may use.

Raise the number of every kind whose figures change when the code changes what a figure means: the metric, what it is
computed on, or how images are drawn for it. Figures that were kept with another number are measured again. Stored
figures of a small input (`tests/fixtures/figures.json`) fail a test until the number is raised.
"""


def versions_of(kind: str) -> dict[str, int]:
    """What figures of `kind` depend on."""
    return {name: VERSIONS[name] for name in (kind, "features")}


def completed(stored: dict[str, int] | None) -> dict[str, int]:
    """`stored` with every name of the table: figures kept before there were versions are those of version 1."""
    return dict.fromkeys(VERSIONS, 1) | (stored or {})
