"""`prologue evaluate`: measure a run, print the figures, and keep them in the run's folder."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from prologue.builtin import shown
from prologue.cli.options import parse
from prologue.errors import ConfigError
from prologue.evaluation.evaluations import evaluate
from prologue.evaluation.kinds import KINDS, named_kind
from prologue.evaluation.kinds.base import Kind, Options, checked, note_sentences
from prologue.evaluation.runs import Record
from prologue.utils.launcher import launched
from prologue.utils.measurements import export_measurement


def run(argv: list[str]) -> int:
    """Measure one kind, print the figures, keep them in the run's folder, and write the file of `--json`."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not argv or argv[0].startswith("-"):
        raise ConfigError(
            f"name what to measure first: prologue evaluate KIND RUN, where KIND is one of {', '.join(KINDS)}"
        )
    kind = named_kind(argv[0])
    summary = f"{kind.summary[:1].upper()}{kind.summary[1:]}."
    given: Options = parse(kind.options, argv[1:], f"prologue evaluate {kind.name}", summary, kind.epilog)
    options = checked(given)
    prepared = kind.prepare(options)
    found = evaluate(kind, prepared, ["evaluate", *argv])
    if not launched().main:
        return 0
    _print(kind, found.record, shown(options.run))
    for picture in found.pictures.values():
        print(f"Picture: {picture}")
    if prepared.after is not None:
        prepared.after(found.record)
    kept = f"kept in {found.path}" if found.path.is_file() else "printed above"
    export_measurement(options.json, found.provenance, [found.record], kept)
    return 0


def _usage() -> str:
    kinds = "\n".join(f"  {name:<16}{named_kind(name).summary}" for name in KINDS)
    return (
        "usage: prologue evaluate KIND RUN [OPTIONS]\n\nMeasure a run.\n\n"
        f"kinds:\n{kinds}\n  {'module:Class':<16}your own kind\n\n"
        "`prologue evaluate KIND --help` lists the options of a kind."
    )


def _print(kind: Kind[Any], record: Record, run: str) -> None:
    """Print a record as a table with its sentences below."""
    table = Table("measure", "figure", "95 % interval", title=f"{kind.name} of {run}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in kind.rows(record):
        table.add_row(*row)
    Console().print(table)
    for sentence in (*kind.sentences(record), *note_sentences(record)):
        print(sentence)
