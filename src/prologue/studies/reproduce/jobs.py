"""Several pieces of a study at a time, each in its own process with an equal part of the cores."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess

from prologue.errors import PrologueError, RunError
from prologue.studies.reproduce.pieces import Piece
from prologue.studies.reproduce.request import OVERTIME, Deadline, OutOfTime, StudyRequest
from prologue.studies.reproduce.setting import open_bench
from prologue.studies.reproduce.worker import Worker
from prologue.training.loop import Stopped
from prologue.training.progress import Progress, Terminal
from prologue.utils.allocator import keep_freed_memory
from prologue.utils.device import pick_device
from prologue.utils.processes import end_with_parent

_LOOK_SECONDS = 0.2
_OUT_OF_TIME = 3
"""The exit code of a piece that ran out of time."""
_SIGNALLED = 128


def side_by_side(request: StudyRequest, pieces: Sequence[Piece], deadline: Deadline, after: Callable[[], None]) -> None:
    """Make the pieces without a result, `request.jobs` at a time. `after` is called after each piece.

    Raises `Stopped` on a signal, after all processes have stopped; `OutOfTime` when the time is up; `RunError` if a
    piece fails, after the other processes have stopped at a checkpoint.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Piece, BaseProcess] = {}
    late: set[Piece] = set()  # pieces whose next part takes longer than the time left
    with deadline.listening():
        try:
            while True:
                for piece in _ready(request, pieces, {*running, *late}):
                    if len(running) < request.jobs and deadline.asked() is None:
                        running[piece] = context.Process(target=_make, args=(request, piece), name=piece.name)
                        running[piece].start()
                if not running:
                    break
                time.sleep(_LOOK_SECONDS)
                for piece in [piece for piece, process in running.items() if not process.is_alive()]:
                    code = running.pop(piece).exitcode
                    if code == _OUT_OF_TIME:
                        late.add(piece)
                    if code in (0, _OUT_OF_TIME):
                        after()
                    elif deadline.number is None:
                        raise RunError(
                            f"{piece.name} failed with exit code {code}; its error is printed above. "
                            "The same command continues the study"
                        )
                if deadline.number is not None:
                    break
        finally:
            _stop(running.values())
    if deadline.number is not None:
        raise Stopped("after checkpoints of the active runs", deadline.number)
    if not all(piece.result_file(request.out).is_file() for piece in pieces):
        raise OutOfTime


def _ready(request: StudyRequest, pieces: Sequence[Piece], begun: Collection[Piece]) -> Iterator[Piece]:
    """The pieces that can begin: without a result, not begun in this call, and with the piece they start from done."""
    for piece in pieces:
        source = piece.starts_from
        possible = source is None or source.result_file(request.out).is_file()
        if possible and piece not in begun and not piece.result_file(request.out).is_file():
            yield piece


def _stop(processes: Iterable[BaseProcess]) -> None:
    """Request a stop of all processes and wait. Each stops after a checkpoint."""
    alive = list(processes)
    for process in alive:
        process.terminate()
    for process in alive:
        process.join()


def _make(request: StudyRequest, piece: Piece) -> None:
    """Make one piece. Runs in its own process and ends with an exit code."""
    import torch

    # A terminal sends Ctrl-C to all processes. The parent handles it and terminates the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(max(1, torch.get_num_threads() // request.jobs))
    if pick_device(request.device).type == "cpu":
        keep_freed_memory()
    try:
        bench = open_bench(request, Progress())
        Worker(request, bench, Deadline.of(request), Terminal(f"{piece.name}: ")).do(piece)
    except OutOfTime:
        sys.exit(_OUT_OF_TIME)
    except Stopped as stopped:
        sys.exit(_OUT_OF_TIME if stopped.signal == OVERTIME else _SIGNALLED + stopped.signal)
    except PrologueError as error:
        print(f"{piece.name}: {error}", file=sys.stderr)
        sys.exit(2)
