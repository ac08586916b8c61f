"""Tells the fleet which store revision this node's edge is running: ``/edges/<node>``, while it lives."""

import json
import threading
import time
from collections.abc import Callable

import structlog

from discovery.errors import SessionLost, StoreError
from discovery.retry import Backoff
from discovery.schema import EDGES
from discovery.stores.base import Session, Store

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.5
"""How often the revision is looked at; also bounds how often it is written."""


class EdgeReporter:
    """Keeps one key true under a session of its own. One thread calls ``run``."""

    def __init__(
        self,
        store: Store,
        node: str,
        describe: Callable[[], dict[str, object] | None],
        ttl_seconds: float,
    ) -> None:
        """``describe`` gives the object to write, None while there is nothing to confirm."""
        self._store = store
        self._key = EDGES + node
        self._describe = describe
        self._ttl_seconds = ttl_seconds
        self._reported = True

    def run(self, stop: threading.Event) -> None:
        """Report until ``stop``, then withdraw the key."""
        backoff = Backoff(first_seconds=0.5, most_seconds=self._ttl_seconds / 3)
        while not stop.is_set():
            try:
                self._report(self._store.session(self._ttl_seconds), stop, backoff)
            except SessionLost:
                log.info("edge_session_lost", key=self._key)
            except StoreError as error:
                if self._reported:
                    log.warning("edge_not_reported", key=self._key, error=str(error))
                self._reported = False
                stop.wait(backoff.next_seconds())

    def _report(self, session: Session, stop: threading.Event, backoff: Backoff) -> None:
        written: str | None = None
        renewed = time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            described = self._describe()
            text = json.dumps(described) if described is not None else None
            if text is not None and text != written:
                session.put({self._key: text})
                written = text
                self._reported = True
                backoff.reset()
            if time.monotonic() - renewed >= self._ttl_seconds / 3:
                session.keepalive()
                renewed = time.monotonic()
        session.close()
