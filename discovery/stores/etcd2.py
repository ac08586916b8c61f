"""``etcd2://`` — the v2 API of etcd, through python-etcd.

``created`` of an entry changes when another program sets the key anew, as ``etcdctl set`` does; our own
puts keep it, as v3 does. A value that is no UTF-8 arrives with U+FFFD for each bad byte, for etcd v2 sends
it so. Keys with a part that begins with ``_`` are hidden by etcd v2: they cannot be written here, and are
not seen. A TTL is a whole number of seconds, rounded up. A batch is no transaction: its keys are written in
several requests at once.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from discovery.errors import SessionLost, StoreRefused, StoreUnavailable
from discovery.stores import StoreOptions
from discovery.stores.base import Changes, Session, Snapshot
from discovery.stores.endpoints import parse_target, tls_context
from discovery.stores.etcd2_watch import Known, Watch, read
from discovery.stores.etcd2_wire import (
    COMPARE_FAILED,
    KEY_EXISTS,
    KEY_NOT_FOUND,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    Answer,
    Params,
    Servers,
    key_path,
    value_text,
)

log = structlog.get_logger(__name__)

_ABSENT = (KEY_NOT_FOUND, NOT_A_FILE, NOT_A_DIRECTORY)
_EXISTENCE = (KEY_NOT_FOUND, KEY_EXISTS)
_TRIES = 3


def open_url(url: str, options: StoreOptions) -> "Etcd2Store":
    """The store at ``etcd2://[USER:PASSWORD@]HOST[:2379][,HOST…]``; with ``etcd2+https`` over TLS.

    Raises ConfigError for a malformed URL or an unusable TLS file.
    """
    target = parse_target(url, options)
    context = tls_context(options) if target.tls else None
    return Etcd2Store(Servers(target, context, options.timeout_seconds))


class Etcd2Store:
    """See ``base.Store``."""

    def __init__(self, servers: Servers) -> None:
        self.url = servers.target.url
        self._servers = servers
        self._lock = threading.Lock()
        # What each prefix held when it was last read or watched: a watch that goes on from there needs it.
        self._known: dict[str, Known] = {}

    def snapshot(self, prefix: str) -> Snapshot:
        """See ``base.Store``."""
        known = read(self._servers, prefix)
        with self._lock:
            self._known[prefix] = known
        return Snapshot(known.revision, known.entries)

    def watch(
        self,
        prefix: str,
        revision: int,
        patience_seconds: float | None = None,  # noqa: ARG002 - its watch asks nothing besides
    ) -> Iterator[Changes]:
        """See ``base.Store``.

        Costs one more read of the prefix when ``revision`` is not the one of the last snapshot or watch of
        that prefix; HistoryLost then also when a whole directory was deleted since.
        """
        with self._lock:
            known = self._known.get(prefix)
        if known is None or known.revision != revision:
            known = read(self._servers, prefix)
        watch = Watch(self._servers, prefix, revision, known)
        try:
            yield from watch.changes()
        finally:
            self._remember(prefix, watch.known)

    def _remember(self, prefix: str, known: Known | None) -> None:
        with self._lock:
            before = self._known.get(prefix)
            if known is not None and (before is None or before.revision <= known.revision):
                self._known[prefix] = known

    def session(self, ttl_seconds: float) -> Session:
        """See ``base.Store``."""
        return _Session(self._servers, ttl_seconds)

    def put(self, values: Mapping[str, str]) -> None:
        """See ``base.Store``."""
        self._servers.each(lambda item: _put(self._servers, *item, ttl=None), values.items())

    def delete(self, keys: Iterable[str]) -> None:
        """See ``base.Store``."""
        self._servers.each(self._delete, dict.fromkeys(keys))

    def _delete(self, key: str) -> None:
        _expect(self._servers.call("DELETE", key_path(key), {}), key, *_ABSENT)

    def close(self) -> None:
        """See ``base.Store``."""
        self._servers.close()


def _put(servers: Servers, key: str, value: str, *, ttl: int | None, exists: bool = False) -> Answer:
    """Write a key so that ``created`` stays what it was; ``exists`` is a guess that saves a request.

    etcd's plain set makes a key anew each time, and then a service that merely registers one more instance
    would lose a port that it has held for long to a later claimant.
    """
    path = key_path(key)
    params: Params = {"value": value_text(key, value), **({} if ttl is None else {"ttl": ttl})}
    if not value:
        # An update without a value would be taken for one of a directory of that name, its TTL included.
        return _expect(servers.call("PUT", path, params), key)
    for _ in range(_TRIES):
        known = str(exists).lower()
        answer = _expect(servers.call("PUT", path, {**params, "prevExist": known}), key, *_EXISTENCE)
        if not answer.code:
            return answer
        exists = answer.code == KEY_EXISTS
    raise StoreUnavailable(f"{key} comes and goes faster than it can be written")


def _expect(answer: Answer, key: str, *codes: int) -> Answer:
    """``answer`` if it is a yes or one of ``codes``."""
    if answer.code and answer.code not in codes:
        raise StoreRefused(f"{key}: {answer.body.get('message')}: {answer.body.get('cause')}")
    return answer


@dataclass(slots=True)
class _Held:
    """A key of a session.

    ``modified`` is the index of our put or last refresh; to compare it makes a refresh or a deletion ours
    or nothing. ``attempt`` is the value of a put that had no answer. ``doubtful``: a request had no answer
    and may have been carried out, so that the index may be another by our own doing.
    """

    value: str | None = None
    modified: int = 0
    attempt: str | None = None
    doubtful: bool = False


class _Session:
    """See ``base.Session``. Every key has a TTL of its own and is refreshed by itself.

    A key belongs to the session until anyone else writes it; from then on it is left alone. To refresh 1,000
    keys takes 0.3 to 1 s with a server beside us, and 0.5 s of our CPU. Refreshes wake no watcher, but
    each is one of the 1,000 events that the server keeps.
    """

    def __init__(self, servers: Servers, ttl_seconds: float) -> None:
        self.ttl_seconds = ttl_seconds
        self._servers = servers
        self._ttl = max(1, math.ceil(ttl_seconds))
        self._held: dict[str, _Held] = {}
        self._expires = math.inf
        self._lost: str | None = None
        self._closed = False

    def put(self, values: Mapping[str, str]) -> None:
        """See ``base.Session``."""
        self._check()
        if not self._held:
            self._expires = time.monotonic() + self._ttl
        self._servers.each(self._put, values.items())

    def delete(self, keys: Iterable[str]) -> None:
        """See ``base.Session``; a key that another has taken over is left to it."""
        self._check()
        self._servers.each(self._remove, [key for key in dict.fromkeys(keys) if key in self._held])

    def keepalive(self) -> None:
        """See ``base.Session``."""
        self._check_open()
        began = time.monotonic()
        self._servers.each(self._refresh, list(self._held))
        self._expires = began + self._ttl if self._held else math.inf

    def close(self) -> None:
        """See ``base.Session``; closing a closed session does nothing."""
        if self._closed:
            return
        self._servers.each(self._remove, list(self._held))
        self._closed = True
        if self._lost is not None:
            raise SessionLost(self._lost)

    # -- the state of the session

    def _check(self) -> None:
        """Raise SessionLost if the session is dead; ask the server if it was not kept alive in time."""
        self._check_open()
        if time.monotonic() >= self._expires:
            self.keepalive()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionLost("the session was closed")
        if self._lost is not None:
            raise SessionLost(self._lost)

    # -- one key; these run in several threads at once, each with a key of its own

    def _put(self, item: tuple[str, str]) -> None:
        key, value = item
        held = self._held.setdefault(key, _Held())
        held.attempt = value
        try:
            exists = held.value is not None
            node = _put(self._servers, key, value, ttl=self._ttl, exists=exists).node
        except StoreRefused:
            held.attempt = None
            if held.value is None:
                del self._held[key]
            raise
        self._held[key] = _Held(value, node["modifiedIndex"])

    def _refresh(self, key: str) -> None:
        params: Params = {"refresh": "true", "prevExist": "true", "ttl": self._ttl}
        if not self._if_ours("PUT", key, params):
            self._lost = f"{key} has expired or was deleted"
            del self._held[key]
            raise SessionLost(self._lost)

    def _remove(self, key: str) -> None:
        self._if_ours("DELETE", key, {})
        self._held.pop(key, None)

    def _if_ours(self, method: str, key: str, params: Params) -> bool:
        """Do it unless another has written the key, which is then forgotten; False if the key is gone."""
        held = self._held[key]
        for _ in range(_TRIES):
            if held.attempt is None:
                doubtful, held.doubtful = held.doubtful, True
                answer = self._servers.call(method, key_path(key), {**params, "prevIndex": held.modified})
                held.doubtful = doubtful or answer.repeated
                if not answer.code:
                    held.modified, held.doubtful = answer.node["modifiedIndex"], False
                    return True
                if answer.code == KEY_NOT_FOUND:
                    return False
                _expect(answer, key, COMPARE_FAILED, *_ABSENT)
                if not held.doubtful:
                    return self._forget(key)
            answer = _expect(self._servers.call("GET", key_path(key), {"quorum": "true"}), key, *_ABSENT)
            if answer.code == KEY_NOT_FOUND and held.value is not None:
                return False
            if not self._settle(held, answer):
                return self._forget(key)
        raise StoreUnavailable(f"{key} changes faster than it can be kept")

    def _settle(self, held: _Held, answer: Answer) -> bool:
        """Whether a doubtful key, as the server now shows it, is ours.

        It is when it has a value that we wrote. Another's put of the same value in the very moment of our
        doubt is taken for ours: then both of us put it, and the other finds it taken over.
        """
        value = None if answer.code else answer.node.get("value")
        if value is None or value not in (held.value, held.attempt):
            return False
        held.value, held.modified, held.attempt, held.doubtful = (
            value,
            answer.node["modifiedIndex"],
            None,
            False,
        )
        return True

    def _forget(self, key: str) -> bool:
        del self._held[key]
        log.info("key_taken_over", key=key)
        return True
