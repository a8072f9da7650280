"""`prologue evaluate`: measure a run, print what was found, and keep it in the run's folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from prologue.builtin import shown
from prologue.cli._evaluations import Evaluation, keep, key_of, place
from prologue.cli.kinds.base import Measurement, Prepared, last_sentences
from prologue.errors import ConfigError, did_you_mean
from prologue.evaluation.runs import Record
from prologue.evaluation.versions import versions_of
from prologue.utils.files import is_stream
from prologue.utils.launcher import launched
from prologue.utils.locks import file_lock
from prologue.utils.measurements import export_measurement, plain, provenance
from prologue.utils.processes import main_decides

KINDS: dict[str, str] = {
    "reconstruction": "PSNR, SSIM, distances to the originals, use of the codebook",
    "generation": "distances to training images; on shapes also whether the asked class is seen",
    "reference": "writes statistics of real images that generation or reconstruction is measured against",
    "likelihood": "what the prior pays per image, and what the prologue carries",
    "probe": "what a linear classifier reads from frozen codes, beside visual tokens and pixels",
    "layout": "how alike images are that are drawn from one prologue",
    "intervention": "what changes in an image when one prologue token is exchanged",
    "attention": "how visual positions look at the prologue",
    "memorisation": "how near samples are to training images, beside held-out images",
    "codebook": "use of both codebooks, and which images carry a prologue code",
    "sweep": "which sampling recipe comes closest to the training images; the best becomes the default",
}
"""Each is a module of `prologue.cli.kinds`, which is imported when it is asked for."""


def run(argv: list[str]) -> int:
    """Measure one kind of thing, print it, keep it in the run's folder, and write it where `--json` says."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    name = _kind(argv[0] if argv else None)
    kind = import_module(f"prologue.cli.kinds.{name}")
    prepared: Prepared = kind.prepare(argv[1:])
    options = prepared.options
    path = place(options.run, name, key_of(name, prepared))
    with _alone(path, prepared):
        if main_decides(path.is_file() and not options.again and not prepared.anew):
            found = Evaluation.read(path)
            print(f"found in {path}, measured {found.provenance['time']}; --again measures anew", file=sys.stderr)
        else:
            found = _measured(argv, name, prepared, path)
    if not launched().main:
        return 0
    _show(kind, name, found.record, shown(options.run))
    for picture in found.pictures.values():
        print(f"Picture: {picture}")
    if prepared.after is not None:
        prepared.after(found.record)
    kept = f"kept in {path}" if path.is_file() else "printed above"
    export_measurement(options.json, found.provenance, [found.record], kept)
    return 0


@contextmanager
def _alone(path: Path, prepared: Prepared) -> Iterator[None]:
    """Hold, for all processes of a launcher, what is written: the place of the figures and the file that is asked for.

    The same evaluation waits for the one under way, and finds its figures; others of the same run go side by side. In a
    store that cannot be written nothing is held.
    """
    with ExitStack() as held:
        if launched().main:
            if prepared.writes is not None and not is_stream(prepared.writes):
                held.enter_context(file_lock(prepared.writes))
            with suppress(OSError):
                held.enter_context(file_lock(path, print_waiting))
        yield


def print_waiting() -> None:
    """Say why nothing happens."""
    print("another process measures the same: waiting for its figures", file=sys.stderr, flush=True)


def _measured(argv: list[str], kind: str, prepared: Prepared, path: Path) -> Evaluation:
    """Measure, and keep the figures where the run's folder can be written."""
    begin = time.perf_counter()
    found: Measurement = prepared.measure()
    seconds = round(time.perf_counter() - begin, 2)
    origin = provenance(["evaluate", *argv], **prepared.stated, versions=versions_of(kind), seconds=seconds)
    if not launched().main:
        return Evaluation(path, plain(origin), plain(found.record))
    try:
        return keep(path, origin, found.record, found.pictures)
    except OSError as error:
        print(f"note: the figures are not kept in {path.parent}: {error}", file=sys.stderr)
        return Evaluation(path, plain(origin), plain(found.record))


def _usage() -> str:
    kinds = "\n".join(f"  {name:<16}{summary}" for name, summary in KINDS.items())
    return (
        "usage: prologue evaluate KIND RUN [OPTIONS]\n\nMeasure a run.\n\n"
        f"kinds:\n{kinds}\n\n`prologue evaluate KIND --help` lists the options of a kind."
    )


def _kind(name: str | None) -> str:
    if name in KINDS:
        return name
    listed = ", ".join(KINDS)
    if name is None or name.startswith("-"):
        raise ConfigError(f"say first what to measure: prologue evaluate KIND RUN, where KIND is one of {listed}")
    raise ConfigError(f"unknown kind of evaluation {name!r}: {did_you_mean(name, KINDS)}kinds are {listed}")


def _show(kind: ModuleType, name: str, record: Record, run: str) -> None:
    """Print a record as a table, and below it what has to be known to read it."""
    table = Table("measure", "figure", "95 % interval", title=f"{name} of {run}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in kind.rows(record):
        table.add_row(*row)
    Console().print(table)
    for sentence in (*kind.sentences(record), *last_sentences(record)):
        print(sentence)
