"""The edge reporter on the memory store."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from structlog.testing import capture_logs

from discovery.edges import POLL_SECONDS, QUIET_TTLS, EdgeReporter
from discovery.errors import StoreUnavailable
from discovery.schema import EDGES
from discovery.stores.base import Session, Snapshot, Store
from discovery.stores.memory import Memory, MemoryStore
from tests.lab.thread import in_thread
from tests.lab.wait import until
from tests.unit.test_registrator import Clock

TTL_SECONDS = 30.0
HERE, THERE = "192.0.2.7", "192.0.2.8"


class Site:
    """A store, a reporter on it in a thread, and what that is to report."""

    def __init__(self, poll_seconds: float = POLL_SECONDS) -> None:
        self.poll_seconds = poll_seconds
        self.clock = Clock()
        self.store: Store = MemoryStore(Memory(self.clock))
        self.reads = 0
        self.running: dict[str, object] | None = None
        self.fails = False
        self.writes = 0
        self.keepalives = 0

    def session(self, ttl_seconds: float) -> Session:
        if self.fails:
            raise StoreUnavailable("no answer")
        return Counted(self, self.store.session(ttl_seconds))

    def snapshot(self, prefix: str) -> Snapshot:
        self.reads += 1
        return self.store.snapshot(prefix)

    @property
    def all_reported(self) -> dict[str, object]:
        entries = self.store.snapshot(EDGES).entries
        return {key.removeprefix(EDGES): json.loads(entry.value) for key, entry in entries.items()}

    @property
    def reported(self) -> object:
        return self.all_reported.get("node1")

    @contextmanager
    def reporting(self) -> Iterator[EdgeReporter]:
        reporter = EdgeReporter(
            self,
            "node1",
            HERE,
            lambda: self.running,
            TTL_SECONDS,
            poll_seconds=self.poll_seconds,
            clock=self.clock,
        )
        with in_thread(reporter.run):
            yield reporter


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
        self._site.keepalives += 1

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


# ---- two edges of one name --------------------------------------------------------------------------


def other_edge(site: Site, revision: int = 1) -> Session:
    """Another node of the same name, which reports by a session of its own."""
    session = site.store.session(TTL_SECONDS)
    session.put({f"{EDGES}node1": edge(revision, THERE)})
    return session


def edge(revision: int, address: str) -> str:
    return json.dumps({"revision": revision, "address": address})


def pass_ttls(site: Site, ttls: float, *others: Session) -> None:
    """Let time pass, in steps that who lives survives."""
    for _ in range(round(3 * ttls)):
        kept = site.keepalives
        site.clock.ahead += TTL_SECONDS / 3
        for each in others:
            each.keepalive()
        until(lambda kept=kept: site.keepalives > kept, "it is kept alive")  # type: ignore[misc]


def test_an_edge_leaves_the_key_of_another_alone_and_says_so() -> None:
    site = Site(poll_seconds=0.02)
    site.running = {"revision": 7, "address": HERE}
    theirs = other_edge(site)
    with capture_logs() as logs, site.reporting() as reporter:
        ours = f"node1:{HERE}"
        until(lambda: site.all_reported.get(ours) == site.running, "it is told all the same")
        assert site.all_reported["node1"] == {"revision": 1, "address": THERE}
        assert reporter.problems == (), "it may be left from before, when we had another address"
        pass_ttls(site, 3.4, theirs)
        until(lambda: bool(reporter.problems), "it lives")
        assert THERE in reporter.problems[0].reason
        theirs.close()
        pass_ttls(site, 1.4)
        until(lambda: site.all_reported == {"node1": site.running}, "the name is free")
        until(lambda: not reporter.problems, "and nothing more to say")
    assert site.all_reported == {}
    assert [log["event"] for log in logs] == ["edge_name_shared", "edge_name_no_longer_shared"]


def test_what_a_former_life_left_is_overwritten_and_of_another_address_waited_for() -> None:
    site = Site(poll_seconds=0.02)
    site.running = {"revision": 7, "address": HERE}
    site.store.session(TTL_SECONDS).put({f"{EDGES}node1": edge(1, HERE)})
    with site.reporting():
        until(lambda: site.reported == site.running, "the same address: it is taken over")
    other_edge(site)
    with capture_logs() as logs, site.reporting() as reporter:
        until(lambda: f"node1:{HERE}" in site.all_reported, "it is told")
        pass_ttls(site, 2.4)
        until(lambda: site.all_reported == {"node1": site.running}, "expired, and taken over")
        assert reporter.problems == ()
    assert logs == []


def test_an_edge_hears_of_the_one_that_gave_way() -> None:
    site = Site(poll_seconds=0.02)
    site.running = {"revision": 7, "address": HERE}
    with site.reporting() as reporter:
        until(lambda: site.reported == site.running, "it is told")
        pass_ttls(site, 1.4)
        theirs = site.store.session(TTL_SECONDS)
        theirs.put({f"{EDGES}node1:{THERE}": edge(1, THERE)})
        pass_ttls(site, QUIET_TTLS, theirs)
        site.running = {"revision": 8, "address": HERE}
        until(lambda: site.reported == site.running, "its key stays its own")
        pass_ttls(site, 4, theirs)
        until(lambda: bool(reporter.problems), "it says so")
        assert site.reported == site.running


def test_of_two_that_began_at_once_the_one_that_was_overwritten_gives_way() -> None:
    site = Site(poll_seconds=0.02)
    site.running = {"revision": 7, "address": HERE}
    with site.reporting():
        until(lambda: site.reported == site.running, "it is told")
        theirs = other_edge(site)
        pass_ttls(site, 1.4, theirs)
        until(lambda: site.all_reported.get(f"node1:{HERE}") == site.running, "it gives way")
        assert site.reported == {"revision": 1, "address": THERE}
    assert site.all_reported == {"node1": {"revision": 1, "address": THERE}}, "its end takes nothing away"


def test_at_rest_nothing_is_read() -> None:
    site = Site(poll_seconds=0.02)
    site.running = {"revision": 7, "address": HERE}
    with site.reporting():
        until(lambda: site.reported == site.running, "it is told")
        pass_ttls(site, 2 * QUIET_TTLS)
        assert site.reads == 2, (
            "before the first report, and once to see whether another wrote at the same time"
        )
