"""End of an interrupted command: a message about how to continue, and the exit code of the signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prologue.training.loop import Stopped
from prologue.training.progress import Progress


@contextmanager
def stops(progress: Progress) -> Iterator[None]:
    """Wrap work that can be resumed. After a signal, raise `SystemExit` with 128 plus the signal's number."""
    try:
        yield
    except Stopped as stopped:
        progress.say(f"{stopped}. Run the same command again to continue")
        raise SystemExit(128 + stopped.signal) from None
    except KeyboardInterrupt:
        progress.say("stopped. Run the same command again to continue")
        raise SystemExit(128 + signal.SIGINT) from None
