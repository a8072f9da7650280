"""How a command ends that was asked to stop: with what to do next, and the exit code of the signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prologue.training.loop import Stopped
from prologue.training.progress import Progress


@contextmanager
def stops(progress: Progress) -> Iterator[None]:
    """Around work that continues where it was. Leaves by `SystemExit`, as a shell expects it of a signal."""
    try:
        yield
    except Stopped as stopped:
        progress.say(f"{stopped}. Run the same command again to continue")
        raise SystemExit(128 + stopped.signal) from None
    except KeyboardInterrupt:
        progress.say("stopped. Run the same command again to continue")
        raise SystemExit(128 + signal.SIGINT) from None
