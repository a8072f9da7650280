"""A study from its settings to its tables. Each piece has its result file when it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prologue.studies.reproduce.jobs import side_by_side
from prologue.studies.reproduce.measures import Bench
from prologue.studies.reproduce.pieces import Piece, all_pieces, load_results, seconds_left
from prologue.studies.reproduce.request import OVERTIME, Deadline, OutOfTime, StudyRequest
from prologue.studies.reproduce.setting import open_bench, require_study_folder
from prologue.studies.reproduce.worker import Worker
from prologue.studies.reproduce.written import write_tables
from prologue.training.loop import Stopped
from prologue.training.progress import Progress
from prologue.utils.locks import folder_lock


@dataclass(frozen=True)
class StudyOutcome:
    """The state of the study after a call."""

    finished: bool
    done: int
    wanted: int
    lines: tuple[str, ...]
    """The sentences of the verdicts."""


def reproduce(request: StudyRequest, progress: Progress) -> StudyOutcome:
    """Begin or continue a study, and write its tables.

    A call whose minutes are up returns an unfinished outcome. Raises `Stopped` on a signal, and `RunError` for settings
    that differ from those of the folder. Seeds and variants may be added.
    """
    with folder_lock(request.out):
        require_study_folder(request.out)
        return _reproduce(request, open_bench(request, progress), progress)


def _reproduce(request: StudyRequest, bench: Bench, progress: Progress) -> StudyOutcome:
    deadline = Deadline.of(request)
    pieces = all_pieces(request.variants, request.seeds)
    added = sorted({piece.variant for piece in pieces} - set(request.variants))
    if added:
        progress.say(f"{', '.join(added)} is trained too, because prologue-post starts from it")
    worker = Worker(request, bench, deadline, progress)
    if load_results(request.out):
        _say_left(request, pieces, progress)
    finished = False
    try:
        if request.jobs > 1:
            side_by_side(request, pieces, deadline, lambda: _say_left(request, pieces, progress))
        else:
            for piece in pieces:
                if not piece.result_file(request.out).is_file():
                    worker.do(piece)
                    _say_left(request, pieces, progress)
        finished = True
    except OutOfTime:
        pass
    except Stopped as stopped:
        if stopped.signal != OVERTIME:
            raise
    finally:
        results = load_results(request.out)
        lines = write_tables(request.out, results, request.scale, request.provenance) if results else ()
    done = sum(piece in results for piece in pieces)
    return StudyOutcome(finished, done, len(pieces), tuple(lines))


def _say_left(request: StudyRequest, pieces: Sequence[Piece], progress: Progress) -> None:
    results = load_results(request.out)
    todo = [piece for piece in pieces if piece not in results]
    left = seconds_left(request.scale, results, todo)
    told = f", about {duration(left / min(request.jobs, len(todo)))} left" if todo and left is not None else ""
    progress.say(f"{len(pieces) - len(todo)} of {len(pieces)} runs are finished{told}")


def duration(seconds: float) -> str:
    """Seconds as text: `50 s`, `30 min` or `2 h 1 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
