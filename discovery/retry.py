"""Back-off with jitter, for everything that is tried again."""

import random


class Backoff:
    """Waits that double from ``first_seconds`` to ``most_seconds``, each jittered down by up to half.

    The jitter keeps a fleet that lost one server from returning to it in step.
    """

    def __init__(self, first_seconds: float, most_seconds: float) -> None:
        self._first_seconds = min(first_seconds, most_seconds)
        self._most_seconds = most_seconds
        self._next_seconds = self._first_seconds

    def next_seconds(self) -> float:
        """How long to wait before the next try."""
        wait = self._next_seconds
        self._next_seconds = min(wait * 2, self._most_seconds)
        return wait * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: begin again at the first wait."""
        self._next_seconds = self._first_seconds
