"""The store protocol: what every engine under discovery must do, and no more.

A store maps keys (``/services/web/hosts/0``) to text values. Each change has a revision, a number
that only grows. A reader takes one snapshot and follows the changes after its revision; a writer puts
expiring keys through a session, and static keys directly.

All methods may block up to the store's time-out and raise StoreUnavailable or StoreRefused. An answer
is an answer: no method returns something empty for something unknown.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

HEARTBEAT_SECONDS = 1.0
"""A watch yields at least this often, so that its reader can look at its stop event."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as a store holds it.

    ``created`` and ``modified`` are revisions: of the put that made the key, and of the last one.
    Bytes that are no UTF-8 arrive as backslash escapes. ``error`` is set when the store has the key but
    cannot read its value (a file without permission, say); the value is then empty.
    """

    key: str
    value: str
    created: int
    modified: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries under a prefix at one revision."""

    revision: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Change:
    """One key's new state; ``entry`` is None when the key is gone."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in their order; ``revision`` is the store's after the last. Empty as a heartbeat."""

    revision: int
    changes: tuple[Change, ...] = ()


class Session(Protocol):
    """Owns expiring keys: they live while ``keepalive`` is called more often than every ``ttl_seconds``.

    Every method raises SessionLost once keys of this session have expired or were removed with its lease;
    the session is then dead and its owner opens a new one. Not thread-safe.
    """

    ttl_seconds: float

    def put(self, values: Mapping[str, str]) -> None:
        """Write these keys, bound to this session, in as few requests as the store allows.

        Taking over a key of another session, or a static one, is allowed: the last put owns it.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these keys of ours; one that is absent, or that another has put since, is left as it is."""
        ...

    def keepalive(self) -> None:
        """Prolong all keys by the TTL. Wakes no watcher."""
        ...

    def close(self) -> None:
        """Remove all keys this session still owns and end it. The one way to withdraw everything."""
        ...


class Store(Protocol):
    """A store, opened by ``open_store(url)``. Thread-safe, but for one session or watch per thread."""

    url: str
    """Fit for display: without a password."""

    def snapshot(self, prefix: str) -> Snapshot:
        """All entries whose key begins with ``prefix`` (which ends in ``/``), in one consistent read."""
        ...

    def watch(self, prefix: str, revision: int, patience_seconds: float | None = None) -> Iterator[Changes]:
        """Every change under ``prefix`` after ``revision``, in order, for ever.

        Yields at least every HEARTBEAT_SECONDS, with no changes if there are none. Resumes by itself
        where it can; raises StoreUnavailable when the store has been out of reach for its time-out
        (call again with the last revision seen), HistoryLost when changes since ``revision`` are gone.
        ``patience_seconds`` is how long a server that hangs may go unnoticed, by default less than the
        store's time-out: a reader that asks the store other things regularly, such as to keep a session
        alive, is told by those, and need not have each watch ask again and again whether it lives.
        Closing the iterator frees what it holds.
        """
        ...

    def session(self, ttl_seconds: float) -> Session:
        """A new session without keys."""
        ...

    def put(self, values: Mapping[str, str]) -> None:
        """Write static keys, which do not expire."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these keys; one that is absent is no error."""
        ...

    def close(self) -> None:
        """Free connections and threads. Sessions' keys are left to expire."""
        ...
