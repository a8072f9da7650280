"""`prologue report`: one self-contained page of runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from prologue.builtin import locate, notes_folder
from prologue.cli._options import parse
from prologue.errors import ConfigError
from prologue.utils.measurements import provenance
from prologue.utils.options import OUTPUT_FILE

MAKER = "prologue report"
"""What marks a page as one that the next call may replace."""
_NAMES = ("report.html", "evaluations.html")
_HEAD = 2000


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Folders of runs, or imported ones; what `prologue evaluate` found of them stands side by side."""
    out: Annotated[Path | None, arg(metavar="FILE"), OUTPUT_FILE] = None
    """The page. Left out: report.html in the first run's folder, or evaluations.html where the report of
    `prologue demo` has that name."""


def run(argv: list[str]) -> int:
    """Write the page and say where it is."""
    description = "Write one self-contained HTML page: configuration, training and all measurements of runs."
    options = parse(ReportOptions, argv, "prologue report", description)
    if not options.runs:
        raise ConfigError("name at least one run: prologue report RUN [RUN ...]")
    from prologue.cli._report_sections import runs_report
    from prologue.cli._reported import Reported, names_of

    names = names_of(options.runs)
    runs = [Reported.load(locate(path), name) for path, name in zip(options.runs, names, strict=True)]
    origin = provenance(["report", *argv])
    report = runs_report(runs, f"Made {origin['time']} by prologue {origin['prologue']}: {origin['command']}", MAKER)
    path = options.out if options.out is not None else _free_name(notes_folder(locate(options.runs[0])))
    report.write(path, beside=False)
    print(report.verdict)
    print(f"Report: {path}")
    return 0


def _free_name(run: Path) -> Path:
    """The first of the usual names that is not another command's page."""
    first, second = (run / name for name in _NAMES)
    if not first.is_file():
        return first
    with first.open(encoding="utf-8", errors="replace") as file:
        return first if f'content="{MAKER}"' in file.read(_HEAD) else second
