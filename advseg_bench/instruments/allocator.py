"""Sets whether the C library keeps freed memory, and when Python collects garbage."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Option numbers of glibc's malloc.h."""

LARGE = 1 << 25
"""Bytes; the largest threshold that glibc accepts."""

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Environment variables by which a user may have set these options."""


def keep_freed_memory(*, volumes: bool = False) -> bool:
    """Make this process keep freed memory for later allocations, until it exits.

    By default glibc returns freed allocations of more than 32 MB, and the free end of the heap, to the system. Each
    gradient allocates that memory again, and the system fills every new page with zeros. In exchange the process holds
    slightly more memory, due to fragmentation. With volumes, whose layers have few allocations of very different sizes,
    fragmentation doubles the memory, so that allocations of more than 32 MB are returned as by default.

    Args:
        volumes: Whether the images are volumes.

    Returns:
        Whether the options were set: only with glibc, and only if none of `SETTINGS` is set.
    """
    large = {M_MMAP_THRESHOLD: LARGE} if volumes else {M_MMAP_MAX: 0}
    return _set_options({**large, M_TRIM_THRESHOLD: -1})


def return_freed_memory() -> bool:
    """Make this process return freed allocations of more than 64 KB at once, so that it holds only memory in use.

    Returns:
        Whether the options were set, as for `keep_freed_memory`.
    """
    return _set_options({M_MMAP_MAX: 1 << 16, M_MMAP_THRESHOLD: 1 << 16, M_TRIM_THRESHOLD: 1 << 16})


@contextmanager
def without_collector() -> Iterator[None]:
    """Disable the garbage collector inside, whose run time grows with the number of objects; also a decorator.

    It applies to all threads, until the first thread that uses it exits the context.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _set_options(settings: dict[int, int]) -> bool:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all(set_option(name, value) for name, value in settings.items())
