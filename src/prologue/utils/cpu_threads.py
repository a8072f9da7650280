"""The number of CPU threads for an operation, and how idle threads wait.

The number depends on the size of the work, never on the load of the machine, because on a CPU the rounding of matrix
products depends on the number of threads.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

SPIN_ROUNDS = 1_000
"""Rounds that an idle OpenMP thread spins before it sleeps: a few microseconds.

By default it spins for about a millisecond after each operation, on a core that another process may need. Fewer rounds
cost more on a quiet machine than they save on a busy one (`benchmarks/busy.py`).
"""
_SPIN_VARIABLE = "GOMP_SPINCOUNT"
_USER_POLICY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_USER_COUNT = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")

SMALL_PRODUCT = 2_500_000
"""Multiply-adds of a square linear layer below which it runs on one thread.

A second thread saves at most a fifth of the time on a quiet machine. On a busy machine it makes the layer several times
slower, because every operation waits for a thread that is not running.
"""


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Make idle OpenMP threads of this process sleep early; return whether this was set.

    It must be called before torch is imported, and it acts on GNU's OpenMP library (torch on Linux). A wait policy in
    the environment takes precedence.
    """
    if "torch" in sys.modules or any(name in environ for name in _USER_POLICY):
        return False
    environ[_SPIN_VARIABLE] = str(SPIN_ROUNDS)
    return True


@contextmanager
def spinning_limited() -> Iterator[None]:
    """Apply `limit_spinning` while torch is imported in the block, then restore the environment."""
    limited = limit_spinning()
    try:
        yield
    finally:
        if limited:
            os.environ.pop(_SPIN_VARIABLE, None)


def threads_for(rows: int, width: int) -> int:
    """Return the number of CPU threads for a network of this width that computes `rows` tokens at once.

    It is 1 for small products and torch's number otherwise. A number in the environment (`OMP_NUM_THREADS` and the
    like) takes precedence.
    """
    import torch

    available = torch.get_num_threads()
    return 1 if rows * width * width < SMALL_PRODUCT and not user_count() else available


def user_count() -> bool:
    """Return whether the environment sets a number of threads."""
    return any(os.environ.get(name) for name in _USER_COUNT)


_one_at_a_time = threading.RLock()


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Run the block's CPU operations on this many threads, then restore the previous number.

    torch has one number for the process, so blocks in several Python threads exclude each other.
    """
    import torch

    with _one_at_a_time:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
