"""The services' keys as the store was last seen, kept current by list + watch: for those who write some."""

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from discovery.errors import StoreError
from discovery.listwatch import Listing, list_and_watch
from discovery.schema import ATTRIBUTES, SERVICES, is_instance, split_key
from discovery.stores.base import Changes, Entry, Store

log = structlog.get_logger(__name__)

_NOTHING: Mapping[str, str] = {}


class Mirror:
    """One thread calls ``run``; the rest is for any thread.

    ``wake`` is called after a snapshot and when a service changed that ``interest`` names. Attributes and
    options of other services are not kept: they are most of what a store holds, and nobody asks for them.
    But ``naming`` are those attributes, of any service and by key, whose text names ``node``.
    """

    def __init__(
        self,
        store: Store,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        patience_seconds: float | None = None,
        node: str | None = None,
    ) -> None:
        self.interest: frozenset[str] = frozenset()
        self.naming: Mapping[str, str] = {}
        self.ready = False
        self.heard_at = 0.0
        self.listed_at = 0.0
        self._store = store
        self._wake = wake
        self._clock = clock
        self._patience_seconds = patience_seconds
        # As it stands in JSON; a node's name has nothing that is written otherwise there.
        self._named = None if node is None else f'"{node}"'
        self._services: dict[str, Mapping[str, str]] = {}
        self._lost = False

    def seen(self, service: str) -> Mapping[str, str]:
        """The keys of one service by what follows ``/services/<name>/``; it never changes afterwards."""
        return self._services.get(service, _NOTHING)

    def run(self, stop: threading.Event) -> None:
        """Follow the store until ``stop``; an outage is waited out, and what was seen stays."""
        list_and_watch(
            self._store, SERVICES, self, stop, patience_seconds=self._patience_seconds, clock=self._clock
        )

    # -- a Reader

    def begin(self, listing: Listing) -> None:
        """See ``listwatch.Reader``."""
        services: dict[str, dict[str, str]] = {}
        entries = listing.snapshot.entries
        for key, entry in entries.items():
            service, rest = split_key(key)
            if self._is_kept(service, rest):
                services.setdefault(service, {})[rest] = _value(entry)
        self._services = dict(services)
        self.naming = {key: entry.value for key, entry in entries.items() if self._names_node(key, entry)}
        self.heard_at = self.listed_at = listing.asked_at
        self.ready = True
        if self._lost:
            log.info("store_read_again", store=self._store.url)
        self._lost = False
        self._wake()

    def follow(self, changes: Changes) -> None:
        """See ``listwatch.Reader``."""
        self._follow_naming(changes)
        if self._apply(changes):
            self._wake()
        self.heard_at = self._clock()

    def lose(self, error: StoreError) -> None:
        """See ``listwatch.Reader``."""
        if not self._lost:
            log.warning("registering_waits_for_the_store", store=self._store.url, error=str(error))
        self._lost = True

    def _apply(self, changes: Changes) -> bool:
        """Take the changes over; whether any is of interest."""
        touched: dict[str, dict[str, str]] = {}
        for change in changes.changes:
            service, rest = split_key(change.key)
            if not self._is_kept(service, rest):
                continue
            keys = touched.setdefault(service, dict(self.seen(service)))
            if change.entry is None:
                keys.pop(rest, None)
            else:
                keys[rest] = _value(change.entry)
        for service, keys in touched.items():
            if keys:
                self._services[service] = keys
            else:
                self._services.pop(service, None)
        return not self.interest.isdisjoint(touched)

    def _follow_naming(self, changes: Changes) -> None:
        newest = {change.key: change.entry for change in changes.changes}
        named = {key: e.value for key, e in newest.items() if e is not None and self._names_node(key, e)}
        if named or not newest.keys().isdisjoint(self.naming):
            left = {key: value for key, value in self.naming.items() if key not in newest}
            self.naming = left | named

    def _names_node(self, key: str, entry: Entry) -> bool:
        if self._named is None or self._named not in entry.value:
            return False
        return split_key(key)[1].startswith(ATTRIBUTES)

    def _is_kept(self, service: str, rest: str) -> bool:
        return is_instance(rest) or "/" not in rest or service in self.interest


def _value(entry: Entry) -> str:
    """What a key says; a value that cannot be read equals none that we would write."""
    return entry.value if entry.error is None else ""
