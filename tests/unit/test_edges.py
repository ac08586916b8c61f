"""The edge reporter on the memory store."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from structlog.testing import capture_logs

from discovery.edges import EdgeReporter
from discovery.errors import StoreUnavailable
from discovery.schema import EDGES
from discovery.stores import open_store
from discovery.stores.base import Session, Store
from tests.lab.wait import until

TTL_SECONDS = 30.0


class Site:
    """A store, a reporter on it in a thread, and what that is to report."""

    def __init__(self) -> None:
        self.store: Store = open_store("memory:")
        self.running: dict[str, object] | None = None
        self.fails = False
        self.writes = 0

    def session(self, ttl_seconds: float) -> Session:
        if self.fails:
            raise StoreUnavailable("no answer")
        return Counted(self, self.store.session(ttl_seconds))

    @property
    def reported(self) -> object:
        entry = self.store.snapshot(EDGES).entries.get(f"{EDGES}node1")
        return None if entry is None else json.loads(entry.value)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        stop = threading.Event()
        reporter = EdgeReporter(self.session, "node1", lambda: self.running, TTL_SECONDS)
        thread = threading.Thread(target=reporter.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()


class Counted:
    """A session whose writes are counted, and fail when the site says so."""

    def __init__(self, site: Site, session: Session) -> None:
        self.ttl_seconds = session.ttl_seconds
        self._site = site
        self._session = session

    def put(self, values: Mapping[str, str]) -> None:
        if self._site.fails:
            raise StoreUnavailable("no answer")
        self._site.writes += 1
        self._session.put(values)

    def delete(self, keys: Iterable[str]) -> None:
        self._session.delete(keys)

    def keepalive(self) -> None:
        self._session.keepalive()

    def close(self) -> None:
        self._session.close()


def test_what_runs_is_told_while_it_runs_and_no_longer() -> None:
    site = Site()
    with site.reporting():
        assert site.reported is None
        site.running = {"revision": 7}
        until(lambda: site.reported == {"revision": 7}, "it is told")
        site.running = {"revision": 8}
        until(lambda: site.reported == {"revision": 8}, "its progress is told")
        site.running = None
        until(lambda: site.reported is None, "nothing runs, nothing is claimed")
        site.running = {"revision": 8}
        until(lambda: site.reported == {"revision": 8}, "it is told again")
    assert site.reported is None


def test_steady_progress_is_told_less_and_less_often() -> None:
    """Every heartbeat of a shell loop moves the revision on; each node would write twice a second."""
    site = Site()
    site.running = {"revision": 0}
    over = threading.Event()
    timer = threading.Timer(6, over.set)
    with site.reporting():
        timer.start()
        revision = 0
        while not over.wait(0.05):
            revision += 1
            site.running = {"revision": revision}
        assert 2 <= site.writes <= 6
        until(lambda: site.reported == {"revision": revision}, "the last is told in the end")


def test_an_outage_and_its_end_are_logged_once() -> None:
    site = Site()
    site.running, site.fails = {"revision": 7}, True
    with capture_logs() as logs, site.reporting():
        until(lambda: "edge_not_reported" in {log["event"] for log in logs}, "the outage is logged")
        site.fails = False
        until(lambda: site.reported == {"revision": 7}, "it is told")
    assert [log["event"] for log in logs] == ["edge_not_reported", "edge_reported_again"]
