"""Versions of figures: their meaning, as computed by the code."""

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
"""One version for each built-in kind of `prologue evaluate`, and one for the feature networks of the package.

Raise the version of every kind whose figures change their meaning: the metric, its input, or how images are drawn for
it. Figures with another version are measured again. Stored figures of a small input (`tests/fixtures/figures.json`)
fail a test until the version is raised.
"""


def versions_of(kind: str, own: int = 1) -> dict[str, int]:
    """The versions that identify figures of `kind`; `own` is that of a kind from outside the package."""
    return {kind: VERSIONS.get(kind, own), "features": VERSIONS["features"]}


def completed(stored: dict[str, int] | None) -> dict[str, int]:
    """`stored` with all names of the table; figures stored without a version have version 1."""
    return dict.fromkeys(VERSIONS, 1) | (stored or {})
