"""The output of a study: the tables as Markdown, as JSON, and as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prologue.report.page import Block, Fold, Picture, Report, Section, Table, Text
from prologue.studies.reproduce.claims import Claim, Results, headline, judge_claims, sentence
from prologue.studies.reproduce.figures import ALL, by_seed, cell_figures, variants_of
from prologue.studies.reproduce.pictures import FOLDER, find_picture
from prologue.studies.reproduce.pieces import Piece, Result
from prologue.studies.reproduce.scales import Scale
from prologue.studies.reproduce.tables import make_tables, seed_table
from prologue.utils.files import write_text
from prologue.utils.serialization import save_json, to_dict

MARKDOWN, JSON, PAGE = "tables.md", "results.json", "report.html"


def write_tables(out: Path, results: Results, scale: Scale, provenance: Mapping[str, Any]) -> list[str]:
    """Write `tables.md`, `results.json` and `report.html`. Returns the sentences of the verdicts."""
    claims = judge_claims(results)
    tables = make_tables(results, claims)
    sentences = [sentence(claim) for claim in claims]
    line, _ = verdict_line(claims)
    write_text(out / MARKDOWN, markdown(line, tables, [*sentences, *notes_of(claims)]))
    save_json(out / JSON, summary(results, claims, scale, provenance))
    _page(out, results, claims, tables, provenance).write(out / PAGE, beside=False)
    return sentences


def markdown(line: str, tables: Mapping[str, Table], sentences: Sequence[str]) -> str:
    """The first line, the sentences and the tables as Markdown."""
    lines = [f"**{line}**", "", *(f"- {text}" for text in sentences), ""]
    for title, table in tables.items():
        lines += [f"## {title}", "", *_markdown_table(table), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    yield line(table.head)
    yield "|" + "---|" * table.labels + "---:|" * (len(table.head) - table.labels)
    yield from (line(row) for row in table.rows)
    if table.caption:
        yield from ("", table.caption)


def summary(results: Results, claims: Sequence[Claim], scale: Scale, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `results.json`: claims, and the figures of all variants, averaged and by seed."""
    figures = []
    for name in variants_of(results):
        for shown in ALL:
            values = by_seed(results, name, shown)
            if values:
                record = {"variant": name, "figure": shown.path, "label": shown.title(results), "factor": shown.factor}
                record |= cell_figures(list(values.values()), shown.logarithmic, shown.bounds)
                figures.append(record | {"by_seed": {str(seed): value for seed, value in values.items()}})
    return {
        "provenance": dict(provenance),
        "scale": to_dict(scale),
        "effect": headline(list(claims)),
        "claims": [claim.record() for claim in claims],
        "records": figures,
        "pieces": [_facts(piece, result) for piece, result in results.items()],
    }


def _facts(piece: Piece, result: Result) -> dict[str, Any]:
    """Costs and recipes of a piece. Its measures are in its own file."""
    kept = ("images", "flops", "seconds", "parameters", "precision", "weights", "provenance")
    recipes = {kind: (result["measures"].get(kind) or {}).get("recipe") for kind in ("unguided", "guided")}
    return {"variant": piece.variant, "seed": piece.seed, **{key: result[key] for key in kept}, "recipes": recipes}


def verdict_line(claims: Sequence[Claim]) -> tuple[str, bool | None]:
    """The first sentence of the page, and whether the effect is confirmed (True) or refuted (False)."""
    outcome = headline(list(claims))
    effect = "the paper's effect (unguided samples at least 1.5 times closer, reconstructions at most 5 % worse)"
    if outcome is None:
        return f"Not judged: {effect}. It needs the variants prologue and 2d.", None
    words = {"confirmed": f"Confirmed: {effect}.", "refuted": f"Refuted at this size: {effect}.",
             "undecided": f"Undecided: {effect}."}  # fmt: skip
    good = {"confirmed": True, "refuted": False}.get(outcome)
    return words[outcome], good


def _page(
    out: Path, results: Results, claims: Sequence[Claim], tables: Mapping[str, Table], provenance: Mapping[str, Any]
) -> Report:
    line, good = verdict_line(claims)
    sections = [
        Section("Verdicts", [Text(sentence(claim)) for claim in claims]),
        *(Section(title, [table]) for title, table in tables.items()),
        Section("Pictures", _pictures(out, results)),
        Section("By seed", [Fold("every figure of every seed", [seed_table(results)])]),
    ]
    sections.append(Section("Notes", [Text(note) for note in notes_of(claims)]))
    footer = "Made by " + ", ".join(f"{key} {value}" for key, value in provenance.items())
    return Report("The paper's tables in small", line, [each for each in sections if each.blocks], good, footer)


def notes_of(claims: Sequence[Claim]) -> list[str]:
    """The distinct notes of the claims."""
    return list(dict.fromkeys(f"{claim.ours}: {note}." for claim in claims for note in claim.notes))


_KINDS = {
    "unguided": "Unguided samples",
    "guided": "Guided samples",
    "resampled": "Images resampled from one prologue each",
}


def _pictures(out: Path, results: Results) -> list[Block]:
    """The first measured samples of the first seed of each variant."""
    blocks: list[Block] = []
    for name in variants_of(results):
        piece = next(piece for piece in results if piece.variant == name)
        for kind, what in _KINDS.items():
            image = find_picture(out / FOLDER, piece.name, kind)
            if image is not None:
                caption = f"{what} of {name}, seed {piece.seed}: the first ones, not selected."
                blocks.append(Picture(f"{piece.name}-{kind}", image, what, caption, wide=True))
    return blocks
