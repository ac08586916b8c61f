"""Tells the C library's allocator what kind of process this is: one that lives long, and copies large texts.

By default glibc keeps what was freed, in a heap for each thread, and learns from the first large text to
take the next ones from there too: an agent of 10,000 services then grows by a tenth without need.
"""

import ctypes

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""Of malloc.h, for mallopt(3)."""


def return_what_is_freed() -> None:
    """Have large blocks given back at once; call once, before threads start. Does nothing without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 128 * 1024)
    mallopt(_TRIM_THRESHOLD, 256 * 1024)
