"""``memory:`` — a store inside this process, for tests and for trying things out.

``memory:NAME`` names one that all who open it in this process share, until the process ends; plain
``memory:`` is a new one each time it is opened. History is as short as etcd v2's, so that whoever works
here also works there.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from discovery.errors import ConfigError, SessionLost, StoreUnavailable
from discovery.stores import StoreOptions
from discovery.stores.base import Change, Changes, Entry, Session, Snapshot
from discovery.stores.history import History

HISTORY_CHANGES = 1000

_shared: dict[str, "Memory"] = {}
_shared_lock = threading.Lock()


def open_url(url: str, options: StoreOptions) -> "MemoryStore":
    """The store that ``memory:`` or ``memory:NAME`` names; ``options`` mean nothing to it."""
    del options
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment or "/" in parts.path:
        raise ConfigError("store.url", f"{url!r} is no memory store", "use memory: or memory:NAME")
    if not parts.path:
        return MemoryStore(Memory(), url)
    with _shared_lock:
        memory = _shared.setdefault(parts.path, Memory())
    return MemoryStore(memory, url)


@dataclass(slots=True)
class _Lease:
    expires: float
    keys: set[str]


class Memory:
    """What a memory store holds; several MemoryStores may share one. ``clock`` gives growing seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, history_changes: int = HISTORY_CHANGES
    ) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.entries: dict[str, Entry] = {}
        self.history = History(revision=1, limit=history_changes)
        self.leases: dict[int, _Lease] = {}
        self._owners: dict[str, int] = {}
        self._next_lease = 1

    def grant(self, ttl_seconds: float) -> int:
        """A new lease, by its number."""
        with self.lock:
            number = self._next_lease
            self._next_lease += 1
            self.leases[number] = _Lease(self.clock() + ttl_seconds, set())
            return number

    def put(self, values: Mapping[str, str], lease: int | None) -> None:
        """Write keys that belong to ``lease`` from now on, or to none."""
        if not values:
            return
        with self.lock:
            revision = self.history.revision + 1
            changes = []
            for key, value in values.items():
                before = self.entries.get(key)
                entry = Entry(key, value, before.created if before else revision, revision)
                self._disown(key)
                if lease is not None:
                    self._owners[key] = lease
                    self.leases[lease].keys.add(key)
                self.entries[key] = entry
                changes.append(Change(key, entry))
            self.history.append(revision, changes)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys, whoever owns them."""
        with self.lock:
            gone = [key for key in dict.fromkeys(keys) if self.entries.pop(key, None) is not None]
            for key in gone:
                self._disown(key)
            if gone:
                self.history.append(self.history.revision + 1, [Change(key, None) for key in gone])

    def revoke(self, lease: int) -> None:
        """Remove a lease and the keys it still owns."""
        with self.lock:
            self.delete(sorted(self.leases[lease].keys))
            del self.leases[lease]

    def expire(self) -> float | None:
        """Revoke what is due; the seconds until the next lease is, None without one."""
        with self.lock:
            now = self.clock()
            for number in [number for number, lease in self.leases.items() if lease.expires <= now]:
                self.revoke(number)
            return min((lease.expires - now for lease in self.leases.values()), default=None)

    def _disown(self, key: str) -> None:
        owner = self._owners.pop(key, None)
        if owner is not None:
            self.leases[owner].keys.discard(key)


class MemoryStore:
    """One reader's and writer's view of a Memory; see ``base.Store``."""

    def __init__(self, memory: Memory, url: str = "memory:") -> None:
        self.url = url
        self._memory = memory
        self._closed = False

    def snapshot(self, prefix: str) -> Snapshot:
        """See ``base.Store``."""
        with self._memory.lock:
            self._check()
            entries = {key: entry for key, entry in self._memory.entries.items() if key.startswith(prefix)}
            return Snapshot(self._memory.history.revision, entries)

    def watch(
        self,
        prefix: str,
        revision: int,
        patience_seconds: float | None = None,  # noqa: ARG002 - its watch asks nothing besides
    ) -> Iterator[Changes]:
        """See ``base.Store``."""
        return self._memory.history.follow(prefix, revision, self._check)

    def session(self, ttl_seconds: float) -> Session:
        """See ``base.Store``."""
        self._check()
        return _MemorySession(self._memory, ttl_seconds)

    def put(self, values: Mapping[str, str]) -> None:
        """See ``base.Store``."""
        with self._memory.lock:
            self._check()
            self._memory.put(values, lease=None)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``base.Store``."""
        with self._memory.lock:
            self._check()
            self._memory.delete(keys)

    def close(self) -> None:
        """See ``base.Store``."""
        self._closed = True
        self._memory.history.wake()

    def _check(self) -> float | None:
        if self._closed:
            raise StoreUnavailable(f"{self.url}: the store is closed")
        return self._memory.expire()


class _MemorySession:
    """See ``base.Session``."""

    def __init__(self, memory: Memory, ttl_seconds: float) -> None:
        self.ttl_seconds = ttl_seconds
        self._memory = memory
        self._number = memory.grant(ttl_seconds)
        self._closed = False

    def put(self, values: Mapping[str, str]) -> None:
        """See ``base.Session``."""
        with self._memory.lock:
            self._lease()
            self._memory.put(values, self._number)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``base.Session``; a key that another has taken over is left to it."""
        with self._memory.lock:
            owned = self._lease().keys
            self._memory.delete([key for key in keys if key in owned])

    def keepalive(self) -> None:
        """See ``base.Session``."""
        with self._memory.lock:
            self._lease().expires = self._memory.clock() + self.ttl_seconds

    def close(self) -> None:
        """See ``base.Session``; closing a closed session does nothing."""
        with self._memory.lock:
            if not self._closed:
                self._lease()
                self._memory.revoke(self._number)
                self._closed = True

    def _lease(self) -> _Lease:
        self._memory.expire()
        lease = self._memory.leases.get(self._number)
        if lease is None:
            raise SessionLost("the session was closed" if self._closed else "the session's keys have expired")
        return lease
