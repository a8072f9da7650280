"""The measurements that a run's folder keeps: measured once, and found again by what their figures depend on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prologue._version import __version__
from prologue.builtin import notes_folder
from prologue.evaluation.kinds.base import Kind, Prepared
from prologue.evaluation.store import Result, Store
from prologue.evaluation.versions import versions_of
from prologue.utils.files import is_stream
from prologue.utils.launcher import launched
from prologue.utils.locks import file_lock
from prologue.utils.measurements import plain, provenance
from prologue.utils.processes import main_decides


def store_of(run: Path) -> Store:
    """The measurements of a run, in `RUN/evaluations/`."""
    return Store(notes_folder(run) / "evaluations")


def file_name(kind: str) -> str:
    """The name of a kind in file names: `module.Class` for `module:Class`."""
    return kind.replace(":", ".")


def inputs_of(kind: Kind[Any], prepared: Prepared) -> dict[str, Any]:
    """What identifies the figures: options, weights, images, features and versions."""
    versions = versions_of(kind.name, kind.version)
    return {"kind": kind.name, "prologue": __version__, "versions": versions, **prepared.counted}


def evaluate(kind: Kind[Any], prepared: Prepared, command: Sequence[str] = ()) -> Result:
    """The figures of a prepared measurement: those that the run's folder has, or new ones, which it then keeps.

    A second call with the same request waits for the first one and finds its figures. With a launcher, all processes
    must call this; only the main one writes. `command` are the words after `prologue`, for the provenance.
    """
    store, name, inputs = store_of(prepared.options.run), file_name(kind.name), inputs_of(kind, prepared)
    path = store.path(name, inputs)
    with ExitStack() as held:
        if launched().main:
            if prepared.writes is not None and not is_stream(prepared.writes):
                held.enter_context(file_lock(prepared.writes))
            held.enter_context(store.lock(name, inputs, print_waiting))
        if main_decides(path.is_file() and not prepared.options.again and not prepared.anew):
            found = Result.read(path)
            print(f"found in {path}, measured {found.provenance['time']}; --again measures anew", file=sys.stderr)
            return found
        begin = time.perf_counter()
        measured = prepared.measure()
        seconds = round(time.perf_counter() - begin, 2)
        record = {"kind": kind.name, "notes": [], **measured.record}
        origin = provenance(command, **prepared.stated, versions=inputs["versions"], seconds=seconds)
        if launched().main:
            try:
                return store.keep(name, inputs, record, origin, measured.pictures)
            except OSError as error:
                print(f"note: the figures are not kept in {path.parent}: {error}", file=sys.stderr)
        return Result(path, plain(origin), plain(record))


def print_waiting() -> None:
    """Say that another process measures the same."""
    print("another process measures the same: waiting for its figures", file=sys.stderr, flush=True)
