"""What the C library does with memory that is freed, and when Python looks for more to free."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Names of glibc's malloc.h."""

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Environment variables by which a user may have decided otherwise."""


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, for what it allocates next; for the rest of its life.

    By default glibc returns every block of more than 32 MB to the system when it is freed, and what lies at the end of
    the heap. A gradient frees and allocates as much over and over, and the system fills each page that it hands out
    with zeros. In exchange the process holds a little more memory, by fragments.

    Returns:
        Whether it was done: only with glibc, and unless one of `SETTINGS` is set.
    """
    return _tell({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def return_freed_memory() -> bool:
    """Have this process return every block of more than 64 KB when it is freed: what it holds is what is in use.

    Returns:
        Whether it was done, as `keep_freed_memory`.
    """
    return _tell({M_MMAP_MAX: 1 << 16, M_MMAP_THRESHOLD: 1 << 16, M_TRIM_THRESHOLD: 1 << 16})


@contextmanager
def without_collector() -> Iterator[None]:
    """Look for no cycles of garbage inside, which takes longer the more objects there are; also decorates functions.

    It holds for all threads, until the first of them that uses this is through.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _tell(settings: dict[int, int]) -> bool:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    tell = ctypes.CDLL(None).mallopt
    return all(tell(name, value) for name, value in settings.items())
