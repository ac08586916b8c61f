"""A bounded log of changes and the watches that read it, for stores that live in this process."""

import bisect
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from discovery.errors import HistoryLost
from discovery.stores.base import HEARTBEAT_SECONDS, Change, Changes

Check = Callable[[], float | None]


class History:
    """Changes in the order of their revisions; the oldest are dropped beyond ``limit``.

    Thread-safe. ``revision`` is the newest; everything after the first one given is known until dropped.
    """

    def __init__(self, revision: int, limit: int) -> None:
        self._changed = threading.Condition()
        self._limit = limit
        self._revision = revision
        # Changes after this revision are all in the log.
        self._known_after = revision
        self._dropped = 0
        self._revisions: list[int] = []
        self._changes: list[Change] = []

    @property
    def revision(self) -> int:
        """The revision after the newest change."""
        return self._revision

    def append(self, revision: int, changes: Sequence[Change]) -> None:
        """Log changes that happened at ``revision``, which must exceed the last, and wake the watches."""
        with self._changed:
            if revision <= self._revision:
                raise ValueError(f"revision {revision} follows {self._revision}")
            self._revision = revision
            self._changes.extend(changes)
            self._revisions.extend([revision] * len(changes))
            # Dropped in bulk, for cutting a list at its front costs its length.
            if len(self._changes) >= self._limit + max(1, self._limit // 10):
                self._drop(len(self._changes) - self._limit)
            self._changed.notify_all()

    def wake(self) -> None:
        """Have every watch run its check now."""
        with self._changed:
            self._changed.notify_all()

    def follow(self, prefix: str, revision: int, check: Check) -> Iterator[Changes]:
        """What ``Store.watch`` promises.

        ``check`` is called before every wait and may append changes, or raise to end the watch; it returns
        the seconds after which it wants to be called again, None if it does not care. Raises HistoryLost
        when changes after ``revision`` are not all known.
        """
        check()
        with self._changed:
            position = self._position_after(revision)
        heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        while True:
            wanted_seconds = check()
            with self._changed:
                fresh, position, revision = self._read(position)
                left_seconds = heartbeat - time.monotonic()
                if not fresh and left_seconds > 0:
                    due_seconds = left_seconds if wanted_seconds is None else max(0.0, wanted_seconds)
                    self._changed.wait(min(left_seconds, due_seconds))
                    continue
            concerned = tuple(change for change in fresh if change.key.startswith(prefix))
            if concerned or left_seconds <= 0:
                yield Changes(revision, concerned)
                heartbeat = time.monotonic() + HEARTBEAT_SECONDS

    def _position_after(self, revision: int) -> int:
        """The place in the log, counted from the first change ever, of what follows ``revision``."""
        if not self._known_after <= revision <= self._revision:
            raise HistoryLost(
                f"changes since revision {revision} are unknown, only those from {self._known_after}"
                f" to {self._revision} are"
            )
        return self._dropped + bisect.bisect_right(self._revisions, revision)

    def _read(self, position: int) -> tuple[list[Change], int, int]:
        if position < self._dropped:
            raise HistoryLost("the watch was too slow: changes it has not read were dropped")
        return self._changes[position - self._dropped :], self._dropped + len(self._changes), self._revision

    def _drop(self, count: int) -> None:
        self._known_after = self._revisions[count - 1]
        self._dropped += count
        del self._changes[:count], self._revisions[:count]
