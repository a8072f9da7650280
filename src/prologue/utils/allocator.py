"""Memory that the C library's allocator keeps instead of giving it back after every tensor."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys

# The parameters' numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER_TRIM = 2**31 - 1
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let freed buffers up to 1 GiB stay with the process; true where that was set (Linux with glibc).

    A training step in eager mode on a CPU allocates and frees hundreds of buffers of some MiB. By default glibc maps
    each of them afresh and unmaps it when it is freed, and the kernel has to clear and map every page at its first
    touch: page faults are about a fifth of such a step. Results do not change; the process keeps its peak memory.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return False
