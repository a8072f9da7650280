"""Rows and sentences of distances between image sets."""

from __future__ import annotations

from collections.abc import Iterator

from prologue.commands.kinds.base import Row, row
from prologue.evaluation.runs import DISTANCE_IMAGES, Record


def distance_rows(record: Record) -> Iterator[Row]:
    """The leading distance first."""
    if record["fd"] is None:
        return
    mark = " (trained on)" if record["trained_on_features"] else ""
    kid = row(record["kid_name"] + mark, record, "kid", ".4g")
    fd = (record["fd_name"] + mark + (", indicative" if record["indicative"] else ""), f"{record['fd']:.4g}", "")
    yield from (kid, fd) if record["leads"] == "kid" else (fd, kid)


def distance_sentences(record: Record) -> Iterator[str]:
    """What the distances are worth."""
    if record["fd"] is not None and record["indicative"]:
        yield (
            f"Indicative: with fewer than {DISTANCE_IMAGES} images on a side {record['fd_name']} depends on their "
            f"number; {record['kid_name']} leads. Compare at the same N only."
        )
    if record["trained_on_features"]:
        yield f"The tokenizer trained on these features ({record['features']}): the distances flatter this run."
    if record["reason"] is not None:
        yield f"No distance: {record['reason']}."
