"""The etcd3 store: our own client of etcd's v3 HTTP/JSON gateway.

    etcd3.py          the store and its sessions
    etcd3_watch.py    a watch that changes endpoints
    etcd3_gateway.py  calls, failover, tokens
    etcd3_wire.py     JSON ↔ values

API: https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/ and rpc.proto of etcd 3.4.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping

from discovery.errors import HistoryLost, SessionLost, StoreUnavailable
from discovery.stores import StoreOptions
from discovery.stores.base import Changes, Entry, Snapshot
from discovery.stores.endpoints import parse_target, tls_context
from discovery.stores.etcd3_gateway import Gateway
from discovery.stores.etcd3_watch import follow
from discovery.stores.etcd3_wire import (
    Body,
    LeaseNotFound,
    after_key,
    decode_entry,
    delete_txns,
    prefix_range,
    put_txns,
    revision_of,
)

PAGE_KEYS = 10_000
"""Keys in one range request: bounds what one answer costs (some 10 MB); most stores are read in one."""

SNAPSHOT_TRIES = 3


def open_url(url: str, options: StoreOptions) -> "Etcd3Store":
    """The store at ``etcd3://[USER:PASSWORD@]HOST[:PORT][,…]``, or ``etcd3+https://…``. Does not talk to it.

    Raises ConfigError for a malformed URL or a TLS file that cannot be used.
    """
    target = parse_target(url, options)
    context = tls_context(options) if target.tls else None
    return Etcd3Store(target.url, Gateway(target, options.timeout_seconds, context))


class Etcd3Store:
    """A Store (see stores/base.py) on an etcd 3.4 or later."""

    def __init__(self, url: str, gateway: Gateway) -> None:
        self.url = url
        self._gateway = gateway

    def snapshot(self, prefix: str) -> Snapshot:
        """All entries under ``prefix``, as of the revision of the first page."""
        for _ in range(SNAPSHOT_TRIES):
            try:
                return self._pages(prefix)
            except HistoryLost:
                # Compacted between two pages; begin again.
                continue
        raise StoreUnavailable(f"{self.url} is compacted faster than it can be read")

    def _pages(self, prefix: str) -> Snapshot:
        entries: dict[str, Entry] = {}
        wanted: dict[str, object] = {**prefix_range(prefix), "limit": str(PAGE_KEYS)}
        while True:
            page, start, revision = self._gateway.call("kv/range", wanted, _decode_page)
            entries.update((entry.key, entry) for entry in page)
            wanted.setdefault("revision", str(revision))
            if start is None:
                return Snapshot(int(str(wanted["revision"])), entries)
            wanted["key"] = start

    def watch(self, prefix: str, revision: int, patience_seconds: float | None = None) -> Iterator[Changes]:
        """Every change under ``prefix`` after ``revision``; see base.Store."""
        return follow(self._gateway, prefix, revision, patience_seconds)

    def session(self, ttl_seconds: float) -> "Etcd3Session":
        """A new session; its lease is granted with the first put."""
        return Etcd3Session(self._gateway, ttl_seconds)

    def put(self, values: Mapping[str, str]) -> None:
        """Write static keys."""
        for txn in put_txns(values):
            self._gateway.call("kv/txn", txn, revision_of)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these keys."""
        for txn in delete_txns(keys):
            self._gateway.call("kv/txn", txn, revision_of)

    def close(self) -> None:
        """Free connections; watches end."""
        self._gateway.close()


class Etcd3Session:
    """A Session whose keys hang on one lease.

    The TTL is rounded up to whole seconds, and by etcd to at least its own minimum (1.5 election time-outs).
    """

    def __init__(self, gateway: Gateway, ttl_seconds: float) -> None:
        self.ttl_seconds = ttl_seconds
        self._gateway = gateway
        self._lease: str | None = None
        self._ended: str | None = None

    def put(self, values: Mapping[str, str]) -> None:
        """Write these keys on the lease."""
        self._check()
        if not values:
            return
        if self._lease is None:
            grant = {"TTL": str(max(1, math.ceil(self.ttl_seconds)))}
            self._lease = self._gateway.call("lease/grant", grant, lambda answer: str(int(answer["ID"])))
        for txn in put_txns(values, self._lease):
            try:
                self._gateway.call("kv/txn", txn, revision_of)
            except LeaseNotFound as error:
                raise self._lost() from error

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these keys, in so far as they still hang on the lease."""
        # A deletion does not tell whether the lease lives; the keepalive before it does.
        self.keepalive()
        if self._lease is None:
            return
        for txn in delete_txns(keys, self._lease):
            self._gateway.call("kv/txn", txn, revision_of)

    def keepalive(self) -> None:
        """Renew the lease; a session without keys has none."""
        self._check()
        if self._lease is None:
            return
        # etcd answers for an unknown lease too, then without a TTL.
        left = self._gateway.call(
            "lease/keepalive", {"ID": self._lease}, lambda answer: int(answer["result"].get("TTL", 0))
        )
        if left <= 0:
            raise self._lost()

    def close(self) -> None:
        """Revoke the lease, and with it every key that still hangs on it."""
        if self._ended is not None:
            return
        if self._lease is not None:
            # Not found: it expired before, or a try whose answer got lost revoked it; the keys are gone.
            with contextlib.suppress(LeaseNotFound):
                self._gateway.call("lease/revoke", {"ID": self._lease}, revision_of)
        self._ended = "the session is closed"

    def _check(self) -> None:
        if self._ended is not None:
            raise SessionLost(self._ended)

    def _lost(self) -> SessionLost:
        self._ended = f"the lease of {self.ttl_seconds:g} s has expired or was revoked"
        return SessionLost(self._ended)


def _decode_page(answer: Body) -> tuple[list[Entry], str | None, int]:
    """A range's entries, the key (base64) after the last if there are more, and the store's revision."""
    kvs = answer.get("kvs", [])
    start = after_key(kvs[-1]) if answer.get("more") else None
    return [decode_entry(kv) for kv in kvs], start, revision_of(answer)
