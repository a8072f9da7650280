"""`prologue report`: one self-contained page that shows runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from prologue.builtin import locate, notes_folder
from prologue.cli.options import parse
from prologue.errors import ConfigError
from prologue.utils.measurements import provenance
from prologue.utils.options import OUTPUT_FILE

MAKER = "prologue report"
"""Marks a page that the next call may replace."""
_NAMES = ("report.html", "evaluations.html")
_HEAD = 2000


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Folders of runs or imported models, whose configurations and measurements are shown side by side."""
    out: Annotated[Path | None, arg(metavar="FILE"), OUTPUT_FILE] = None
    """File of the page. Default: report.html in the first run's folder, or evaluations.html if report.html is the
    page of `prologue demo`."""


def run(argv: list[str]) -> int:
    """Write the page and print its path."""
    description = "Write one self-contained HTML page: configuration, training and all measurements of runs."
    options = parse(ReportOptions, argv, "prologue report", description)
    if not options.runs:
        raise ConfigError("name at least one run: prologue report RUN [RUN ...]")
    from prologue.evaluation.reported import Reported, names_of
    from prologue.evaluation.run_report import runs_report

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
    """The first default name that is not the page of another command."""
    first, second = (run / name for name in _NAMES)
    if not first.is_file():
        return first
    with first.open(encoding="utf-8", errors="replace") as file:
        return first if f'content="{MAKER}"' in file.read(_HEAD) else second
