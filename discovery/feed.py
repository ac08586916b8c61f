"""A Feed hands the newest immutable value from one thread to any number of others."""

import threading
import time
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Published(NamedTuple, Generic[T]):
    """A value and its place in the feed's order, from 1."""

    sequence: int
    value: T


class Feed(Generic[T]):
    """Holds the newest value; older ones are dropped, never queued: whoever is slow skips, and catches up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: Published[T] | None = None

    def publish(self, value: T) -> None:
        """Make ``value`` the newest and wake everyone who waits."""
        with self._changed:
            sequence = self._latest.sequence + 1 if self._latest else 1
            self._latest = Published(sequence, value)
            self._changed.notify_all()

    @property
    def latest(self) -> Published[T] | None:
        """The newest value, or None before the first."""
        return self._latest

    def wait(self, seen: int, timeout_seconds: float) -> Published[T] | None:
        """The newest value if its sequence exceeds ``seen``, waiting for it; None after the time-out."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_newer(seen), timeout_seconds)
            return self._latest if self._is_newer(seen) else None

    def gather(self, published: Published[T], quiet_seconds: float, most_seconds: float) -> Published[T]:
        """The newest value once none came for ``quiet_seconds``, at the latest after ``most_seconds``.

        ``published`` is the one that began the burst.
        """
        deadline = time.monotonic() + most_seconds
        while (left := deadline - time.monotonic()) > 0:
            newer = self.wait(published.sequence, min(quiet_seconds, left))
            if newer is None:
                break
            published = newer
        return published

    def _is_newer(self, seen: int) -> bool:
        return self._latest is not None and self._latest.sequence > seen
