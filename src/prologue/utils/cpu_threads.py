"""How many CPU threads a piece of work uses, and how idle ones wait.

The number of threads follows from the size of the work alone, never from the load of the machine: on a CPU products
round by the number of threads, so results would follow the load otherwise.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

SPIN_ROUNDS = 1_000
"""Rounds that an idle OpenMP thread spins before it sleeps.

By default it spins for about a millisecond after each operation, on a core that another process may need. This many
rounds last a few microseconds. With fewer, a quiet machine loses more than a busy one gains (`benchmarks/busy.py`).
"""
_SPIN_VARIABLE = "GOMP_SPINCOUNT"
_USER_POLICY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_USER_COUNT = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")

SMALL_PRODUCT = 2_500_000
"""Multiply-adds of a layer's square product below which one thread serves it.

Two threads save at most a fifth of such work on a quiet machine. On a busy one they make it several times slower,
because every operation waits for a thread that is not running.
"""


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Let idle OpenMP threads of this process sleep soon; true where that was set.

    This works before torch is imported, with GNU's OpenMP library (the Linux builds of torch). A wait policy that the
    user set wins.
    """
    if "torch" in sys.modules or any(name in environ for name in _USER_POLICY):
        return False
    environ[_SPIN_VARIABLE] = str(SPIN_ROUNDS)
    return True


@contextmanager
def spinning_limited() -> Iterator[None]:
    """`limit_spinning` for an import of torch inside the block; the environment is as before behind it."""
    limited = limit_spinning()
    try:
        yield
    finally:
        if limited:
            os.environ.pop(_SPIN_VARIABLE, None)


def threads_for(rows: int, width: int) -> int:
    """The number of CPU threads for a network of this width that computes `rows` tokens at once.

    One where the products are small, else as many as torch was set to. A number that the user set in the environment
    (`OMP_NUM_THREADS` and the like) wins.
    """
    import torch

    available = torch.get_num_threads()
    return 1 if rows * width * width < SMALL_PRODUCT and not user_count() else available


def user_count() -> bool:
    """Whether the user set a number of threads in the environment."""
    return any(os.environ.get(name) for name in _USER_COUNT)


_one_at_a_time = threading.RLock()


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Compute the block's CPU operations with this many threads; the caller's number is set again behind it.

    torch's number is one of the process, so blocks of several Python threads take turns. They lose no time by that:
    a block holds either all cores or Python's own lock.
    """
    import torch

    with _one_at_a_time:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
