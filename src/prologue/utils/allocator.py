"""The C library's memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys

# Parameters of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER_TRIM = 2**31 - 1
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Make malloc reuse freed buffers of up to 1 GiB; return whether this was set (Linux with glibc).

    A training step in eager mode on a CPU allocates and frees hundreds of buffers of a few MiB. By default glibc maps
    and unmaps each of them, and page faults take about a fifth of the step. Results do not change; the process keeps
    its peak memory.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return False
