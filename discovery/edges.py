"""Tells the fleet which store revision this node's edge is running: ``/edges/<node>``, while it lives."""

import json
import math
import threading
import time
from collections.abc import Callable

import structlog

from discovery.errors import SessionLost, StoreError
from discovery.retry import Backoff
from discovery.schema import EDGES
from discovery.stores.base import Session

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.5
"""How often the revision is looked at."""


class EdgeReporter:
    """Keeps one key true under a session of its own. One thread calls ``run``."""

    def __init__(
        self,
        open_session: Callable[[float], Session],
        node: str,
        describe: Callable[[], dict[str, object] | None],
        ttl_seconds: float,
    ) -> None:
        """``open_session`` makes a session of the store that lives so many seconds without renewal.

        ``describe`` gives the object to write, None while nothing is confirmed: then there is no key.

        What changes is written within a second, but steady change less and less often, down to three times
        in ``ttl_seconds``: heartbeats of others move the revision on, and every node would write each time.
        """
        self._open_session = open_session
        self._key = EDGES + node
        self._describe = describe
        self._ttl_seconds = ttl_seconds
        self._reported = True

    def run(self, stop: threading.Event) -> None:
        """Report until ``stop``, then withdraw the key."""
        backoff = Backoff(first_seconds=0.5, most_seconds=self._ttl_seconds / 3)
        while not stop.is_set():
            try:
                self._report(self._open_session(self._ttl_seconds), stop, backoff)
            except SessionLost:
                log.info("edge_session_lost", key=self._key)
            except StoreError as error:
                if self._reported:
                    log.warning("edge_not_reported", key=self._key, error=str(error))
                self._reported = False
                stop.wait(backoff.next_seconds())

    def _report(self, session: Session, stop: threading.Event, backoff: Backoff) -> None:
        rhythm_seconds = self._ttl_seconds / 3
        pause_seconds = _POLL_SECONDS
        written: str | None = None
        written_at = -math.inf
        renewed = time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            now = time.monotonic()
            described = self._describe()
            text = json.dumps(described) if described is not None else None
            if text is None and written is not None:
                session.delete([self._key])
                written = None
            elif text is not None and text != written and now - written_at >= pause_seconds:
                session.put({self._key: text})
                steady = now - written_at < 2 * pause_seconds + _POLL_SECONDS
                pause_seconds = min(2 * pause_seconds, rhythm_seconds) if steady else _POLL_SECONDS
                written, written_at = text, now
                self._report_recovered()
                backoff.reset()
            if now - renewed >= rhythm_seconds:
                session.keepalive()
                renewed = now
        session.close()

    def _report_recovered(self) -> None:
        if not self._reported:
            log.info("edge_reported_again", key=self._key)
        self._reported = True
