"""Tells the fleet which store revision this node's edge is running: ``/edges/<node>``, while it lives.

Two nodes of one name would overwrite each other's word. Who finds another address there leaves that key alone
and reports as ``/edges/<node>:<its address>``, so that the other hears of it as well, until that is gone. The
store is read for that before the first report and some time after each, and so not at all at rest.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from discovery.catalog import Problem
from discovery.errors import SessionLost, StoreError
from discovery.namesakes import MEND, PROOF_TTLS
from discovery.retry import Backoff
from discovery.schema import EDGES, printable
from discovery.stores.base import Entry, Session, Snapshot

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
"""How often it is looked at what this node runs."""

QUIET_TTLS = 10
"""How long nobody looks for another edge of this name, after two looks that found none."""


class EdgeStore(Protocol):
    """What of a store is used; see ``stores.base.Store``."""

    def snapshot(self, prefix: str) -> Snapshot:
        """All entries below ``prefix``."""
        ...

    def session(self, ttl_seconds: float) -> Session:
        """What lives so many seconds without renewal."""
        ...


class EdgeReporter:
    """Keeps one key true under a session of its own. One thread calls ``run``; ``problems`` is for any."""

    def __init__(
        self,
        store: EdgeStore,
        node: str,
        address: str,
        describe: Callable[[], dict[str, object] | None],
        ttl_seconds: float,
        *,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``describe`` gives the object to write, None while nothing is confirmed: then there is no key.

        Its member ``address`` is ``address``, by which two nodes of one name are told apart.

        What changes is written within a second, but steady change less and less often, down to three times
        in ``ttl_seconds``: heartbeats of others move the revision on, and every node would write each time.
        ``poll_seconds`` is how often it is asked what runs.
        """
        self._store = store
        self._rivals = _Rivals(node, address, ttl_seconds)
        self._describe = describe
        self._ttl_seconds = ttl_seconds
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._reported = True

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Another edge of this node's name."""
        return self._rivals.problems

    def run(self, stop: threading.Event) -> None:
        """Report until ``stop``, then withdraw the key."""
        backoff = Backoff(first_seconds=0.5, most_seconds=self._ttl_seconds / 3)
        while not stop.is_set():
            try:
                self._report(self._store.session(self._ttl_seconds), stop, backoff)
            except SessionLost:
                log.info("edge_session_lost", key=self._rivals.key)
            except StoreError as error:
                if self._reported:
                    log.warning("edge_not_reported", key=self._rivals.key, error=str(error))
                self._reported = False
                stop.wait(backoff.next_seconds())

    def _report(self, session: Session, stop: threading.Event, backoff: Backoff) -> None:
        rhythm_seconds = self._ttl_seconds / 3
        pause_seconds = self._poll_seconds
        written: tuple[str, str] | None = None
        written_at = -math.inf
        renewed = self._clock()
        self._rivals.begin()
        while not stop.wait(self._poll_seconds):
            now = self._clock()
            described = self._describe()
            if described is not None and self._rivals.is_look_due(now):
                self._rivals.look(self._store.snapshot(EDGES).entries, now)
            wanted = (self._rivals.key, json.dumps(described)) if described is not None else None
            if wanted is None and written is not None:
                session.delete([written[0]])
                written = None
            elif wanted is not None and wanted != written and now - written_at >= pause_seconds:
                session.put(dict([wanted]))
                if written is not None and written[0] != wanted[0]:
                    session.delete([written[0]])
                steady = now - written_at < 2 * pause_seconds + self._poll_seconds
                pause_seconds = min(2 * pause_seconds, rhythm_seconds) if steady else self._poll_seconds
                written, written_at = wanted, now
                self._rivals.wrote()
                self._report_recovered()
                backoff.reset()
            if now - renewed >= rhythm_seconds:
                session.keepalive()
                renewed = now
        session.close()

    def _report_recovered(self) -> None:
        if not self._reported:
            log.info("edge_reported_again", key=self._rivals.key)
        self._reported = True


class _Rivals:
    """Under which key this edge reports, and who else has its name. Not thread-safe, but for ``problems``."""

    def __init__(self, node: str, address: str, ttl_seconds: float) -> None:
        self.key = EDGES + node
        self.problems: tuple[Problem, ...] = ()
        self._node = node
        self._address = address
        self._ttl_seconds = ttl_seconds
        # No node's name has a colon.
        self._shared, self._own = EDGES + node, f"{EDGES}{node}:{address}"
        self._since: dict[tuple[str, str], float] = {}
        self._look_due: float | None = None
        self._wrote = False

    def begin(self) -> None:
        """A new session: what it will write is not there, and somebody else may be."""
        self._look_due = None

    def wrote(self) -> None:
        """We have written, which another may have overwritten, or be about to."""
        self._wrote = True

    def is_look_due(self, now: float) -> bool:
        """Whether to look who else reports."""
        if self._look_due is None:
            return True
        return self._look_due <= now and bool(self._wrote or self._since)

    def look(self, edges: Mapping[str, Entry], now: float) -> None:
        """``edges`` are all that report, by key."""
        first, self._wrote = self._look_due is None, False
        found = {
            (key, address): self._since.get((key, address), now)
            for key, entry in edges.items()
            if (key == self._shared or key.startswith(f"{self._shared}:"))
            and (address := _address(entry)) is not None
            and address != self._address
        }
        self._since = found
        self.key = self._own if any(key == self._shared for key, _ in found) else self._shared
        self._look_due = now + self._ttl_seconds * (1 if found or first else QUIET_TTLS)
        # Before that it may be left from a former life of this node, when it had another address.
        proof_seconds = PROOF_TTLS * self._ttl_seconds
        self._say(sorted(address for (_, address), since in found.items() if now - since >= proof_seconds))

    def _say(self, addresses: list[str]) -> None:
        was = bool(self.problems)
        self.problems = ()
        if addresses:
            reason = f"{MEND}. Its edge is at {printable(', '.join(addresses))}"
            self.problems = (Problem(None, self._shared, reason, "reported"),)
        if addresses and not was:
            log.warning(
                "edge_name_shared", node=self._node, key=self.key, others=printable(",".join(addresses))
            )
        elif was and not addresses:
            log.info("edge_name_no_longer_shared", node=self._node, key=self.key)


def _address(entry: Entry) -> str | None:
    """Of which address an edge is; None for what is no edge's word."""
    try:
        value = json.loads(entry.value)
    except (ValueError, RecursionError):
        return None
    address = value.get("address") if isinstance(value, Mapping) else None
    return address if isinstance(address, str) else None
