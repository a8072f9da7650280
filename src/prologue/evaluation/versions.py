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
"""One version for each built-in kind of `prologue evaluate`, and one for the feature networks of the package. The order
of the kinds is that of the help and of the report.

Raise the version of every kind whose figures change their meaning: the metric, its input, or how images are drawn for
it. Figures with another version are measured again. Stored figures of a small input (`tests/fixtures/figures.json`)
fail a test until the version is raised.
"""


def versions_of(kind: str) -> dict[str, int]:
    """The versions that identify figures of `kind`. A kind from outside the package is identified by its code."""
    return {name: VERSIONS[name] for name in (kind, "features") if name in VERSIONS}


def completed(stored: dict[str, int] | None) -> dict[str, int]:
    """`stored` with all names of the table; figures stored without a version have version 1."""
    return dict.fromkeys(VERSIONS, 1) | (stored or {})
