"""Waiting for a condition, bounded, instead of sleeping for a guess."""

import time
from collections.abc import Callable


def until(
    condition: Callable[[], bool],
    what: str,
    seconds: float = 20.0,
    *,
    detail: Callable[[], str] = lambda: "",
) -> None:
    """Return once ``condition()`` holds; fail, saying ``what`` and ``detail()``, when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}\n{detail()}")
        time.sleep(0.02)
