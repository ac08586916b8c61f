"""A store that a test can cut off, before or after its writes arrive, and that refuses what it is told to."""

from collections.abc import Iterable, Iterator, Mapping

from discovery.errors import SessionLost, StoreRefused, StoreUnavailable
from discovery.schema import split_key
from discovery.stores.base import Changes, Session, Snapshot, Store


class CuttableStore:
    """A store that a test can cut off, before or after its writes arrive."""

    url = "cuttable:"

    def __init__(self, store: Store) -> None:
        self._store = store
        self.cut = False
        self.blind = False
        self.refused: frozenset[str] = frozenset()
        """Services whose keys it refuses; with "*" all."""
        self.session_lost = False
        self.lose_answers = False
        self.puts = 0
        self.keepalives = 0

    def reach(self) -> None:
        if self.cut:
            raise StoreUnavailable("cut")

    def refuse(self, keys: Iterable[str]) -> None:
        """Raise StoreRefused if any of these is of a service that is refused."""
        for key in keys:
            if {"*", split_key(key)[0]} & self.refused:
                raise StoreRefused(f"{key} is refused")

    def look(self) -> None:
        self.reach()
        if self.blind:
            raise StoreUnavailable("blind")

    def snapshot(self, prefix: str) -> Snapshot:
        self.look()
        return self._store.snapshot(prefix)

    def watch(self, prefix: str, revision: int, patience_seconds: float | None = None) -> Iterator[Changes]:
        for changes in self._store.watch(prefix, revision, patience_seconds):
            self.look()
            yield changes

    def session(self, ttl_seconds: float) -> Session:
        self.reach()
        return CuttableSession(self, self._store.session(ttl_seconds))

    def put(self, values: Mapping[str, str]) -> None:
        self.reach()
        self._store.put(values)

    def delete(self, keys: Iterable[str]) -> None:
        self.reach()
        self._store.delete(keys)

    def close(self) -> None: ...


class CuttableSession:
    def __init__(self, store: CuttableStore, session: Session) -> None:
        self._store = store
        self._session = session
        self.ttl_seconds = session.ttl_seconds
        self._lost = False

    def _check(self) -> None:
        self._store.reach()
        self._lost = self._lost or self._store.session_lost
        if self._lost:
            raise SessionLost("lost")

    def put(self, values: Mapping[str, str]) -> None:
        self._check()
        self._store.refuse(values)
        self._session.put(values)
        self._store.puts += 1
        if self._store.lose_answers:
            raise StoreUnavailable("the answer was lost")

    def delete(self, keys: Iterable[str]) -> None:
        self._check()
        keys = list(keys)
        self._store.refuse(keys)
        self._session.delete(keys)

    def keepalive(self) -> None:
        self._check()
        self._session.keepalive()
        self._store.keepalives += 1

    def close(self) -> None:
        self._store.reach()
        self._session.close()
