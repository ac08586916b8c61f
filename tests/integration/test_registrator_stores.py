"""Real stores in trouble: however it comes, the right keys are there in the end, without a restart."""

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from discovery.catalog import Attributes, Instance, Registration
from discovery.edges import EdgeReporter
from discovery.registrator import Registrator
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Store
from discovery.stores.etcd2_wire import WORKERS
from tests.lab.etcd import Etcd
from tests.lab.relay import Relay
from tests.lab.thread import in_thread
from tests.lab.wait import until
from tests.unit.test_registrator import HELD, ME, SCHEME, H, StubSource, web

TTL_SECONDS = 2.0
ALL = {**HELD, SCHEME: "http"}
OTHER = Registration("other", web("n1:other:80", 8005).instance)


@pytest.fixture(params=[3, 2], ids=["etcd3", "etcd2"])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as started:
        yield started


@pytest.fixture
def reader(etcd: Etcd, version: int) -> Iterator[Store]:
    with closing(open_store(etcd.url(version), StoreOptions(timeout_seconds=2))) as store:
        yield store


@contextmanager
def registering(
    etcd: Etcd, version: int, source: StubSource, node: str | None = None
) -> Iterator[Registrator]:
    with closing(open_store(etcd.url(version), StoreOptions(timeout_seconds=1))) as store:
        registrator = Registrator(store, source, ttl_seconds=TTL_SECONDS, node=node)
        with in_thread(registrator.run):
            yield registrator


def keys(store: Store) -> dict[str, str]:
    return {key: entry.value for key, entry in store.snapshot("/services/").entries.items()}


def until_keys(store: Store, expected: dict[str, str]) -> None:
    until(lambda: keys(store) == expected, f"keys are {expected}", 40, detail=lambda: str(keys(store)))


def stays_so(store: Store, expected: dict[str, str]) -> None:
    """Kept alive, and not just on their way out."""
    over = time.monotonic() + 2 * TTL_SECONDS
    until(lambda: time.monotonic() > over or keys(store) != expected, "two TTLs pass")
    assert keys(store) == expected


def test_down_at_the_start_then_for_longer_than_the_ttl_and_empty_when_it_is_back(
    etcd: Etcd, version: int, reader: Store
) -> None:
    etcd.kill()
    source = StubSource(web())
    with registering(etcd, version, source) as registrator:
        etcd.start()
        until_keys(reader, ALL)
        etcd.kill()
        down = time.monotonic() + 2 * TTL_SECONDS
        until(lambda: time.monotonic() > down and registrator.status.error is not None, "it is down")
        # Meanwhile one moves, and one comes.
        source.say(web(port=8001), OTHER)
        shutil.rmtree(etcd.directory / "data")
        etcd.start()
        until(lambda: keys(reader).get(f"{H}{ME}") == "192.0.2.7:8001", "put again", 40)
        expected = keys(reader)
        assert len(expected) == 6
        stays_so(reader, expected)
        until(lambda: registrator.status.error is None, "it says so")
    assert keys(reader) == {}


def test_frozen_for_longer_than_the_ttl(etcd: Etcd, version: int, reader: Store) -> None:
    source = StubSource(web())
    with registering(etcd, version, source) as registrator:
        until_keys(reader, ALL)
        etcd.freeze()
        try:
            until(lambda: registrator.status.error is not None, "it is noticed")
            source.say()
            source.say(web(port=8001))
            over = time.monotonic() + 2 * TTL_SECONDS
            until(lambda: time.monotonic() > over, "longer than the TTL")
        finally:
            etcd.thaw()
        expected = {**ALL, f"{H}{ME}": "192.0.2.7:8001"}
        until_keys(reader, expected)
        stays_so(reader, expected)
        assert registrator.status.problems == (), "its own keys are nobody else's"


def test_others_delete_and_overwrite(etcd: Etcd, version: int, reader: Store) -> None:
    with registering(etcd, version, StubSource(web())) as registrator:
        until_keys(reader, ALL)
        for key in ALL:
            etcd.ctl(version, "rm" if version == 2 else "del", key)
        until_keys(reader, ALL)
        etcd.ctl(version, "set" if version == 2 else "put", f"{H}{ME}", "192.0.2.66:1")
        until(lambda: bool(registrator.status.problems), "it is reported")
        until_keys(reader, ALL)
        stays_so(reader, ALL)
        if version == 2:
            etcd.ctl(2, "rm", "--recursive", "/services")
            until_keys(reader, ALL)


def test_two_nodes_of_one_name(etcd: Etcd, version: int, reader: Store) -> None:
    theirs = StubSource(web())
    with registering(etcd, version, theirs) as first:
        until_keys(reader, ALL)
        created = reader.snapshot("/services/").entries[f"{H}{ME}"].created
        with registering(etcd, version, StubSource(web(port=8001))) as second:
            until(lambda: bool(first.status.problems and second.status.problems), "both say so")
            assert keys(reader)[f"{H}{ME}"] == "192.0.2.7:8000"
        until_keys(reader, ALL)
        assert reader.snapshot("/services/").entries[f"{H}{ME}"].created == created
        with registering(etcd, version, StubSource(web(port=8001))) as third:
            until(lambda: bool(third.status.problems), "it waits")
            theirs.say()
            until_keys(reader, {**ALL, f"{H}{ME}": "192.0.2.7:8001"})
    assert keys(reader) == {}


def test_two_nodes_of_one_name_with_other_containers(etcd: Etcd, version: int, reader: Store) -> None:
    def shares_name(registrator: Registrator) -> bool:
        return any("has this node's name" in each.reason for each in registrator.status.problems)

    def only(name: str, service: str) -> StubSource:
        attributes = Attributes(node="n1", container=name)
        return StubSource(Registration(service, Instance(f"n1:{name}:80", "192.0.2.7", 8000, attributes)))

    with registering(etcd, version, only("a", "web"), "n1") as first:
        with registering(etcd, version, only("b", "api"), "n1") as second:
            until(lambda: len(keys(reader)) == 6, "both are registered")
            expected = keys(reader)
            until(lambda: shares_name(first) and shares_name(second), "both say so")
            assert keys(reader) == expected
        until(lambda: not shares_name(first), "it has the name for itself")


def test_two_edges_of_one_name(etcd: Etcd, version: int, reader: Store) -> None:
    def reported() -> dict[str, str]:
        entries = reader.snapshot("/edges/").entries
        return {key: json.loads(entry.value)["address"] for key, entry in entries.items()}

    @contextmanager
    def reporting(address: str) -> Iterator[EdgeReporter]:
        with closing(open_store(etcd.url(version), StoreOptions(timeout_seconds=1))) as store:
            edge = {"revision": 1, "address": address}
            reporter = EdgeReporter(store, "n1", address, lambda: edge, TTL_SECONDS, poll_seconds=0.1)
            with in_thread(reporter.run):
                yield reporter

    with reporting("192.0.2.7"):
        until(lambda: reported() == {"/edges/n1": "192.0.2.7"}, "the first reports")
        with reporting("192.0.2.8") as second:
            both = {"/edges/n1": "192.0.2.7", "/edges/n1:192.0.2.8": "192.0.2.8"}
            until(lambda: reported() == both, "the second reports beside it")
            until(lambda: bool(second.problems), "and says so")
            assert reported() == both
        until(lambda: reported() == {"/edges/n1": "192.0.2.7"}, "the second ends")
    assert reported() == {}


def test_history_that_is_compacted_while_it_is_cut_off(etcd: Etcd, version: int, reader: Store) -> None:
    """More happens meanwhile than the store remembers, and to our own keys."""
    source = StubSource(web(), OTHER)
    with closing(Relay(etcd.port)) as relay:
        store = open_store(f"etcd{version}://127.0.0.1:{relay.port}", StoreOptions(timeout_seconds=1))
        with closing(store), in_thread(Registrator(store, source, ttl_seconds=TTL_SECONDS).run):
            until(lambda: len(keys(reader)) == 6, "registered")
            expected = keys(reader)
            relay.cut()
            reader.delete([f"{H}{ME}"])
            for number in range(1100 if version == 2 else 10):
                reader.put({"/services/noise/hosts/0": f"10.0.0.1:{number + 1}"})
            reader.delete(["/services/noise/hosts/0"])
            if version == 3:
                etcd.ctl(3, "compaction", str(reader.snapshot("/services/").revision))
            relay.mend()
            until_keys(reader, expected)
            stays_so(reader, expected)
            source.say(web())
            until_keys(reader, ALL)


SLOW_SECONDS = (0.1, 0.4)
SLOW_TTL_SECONDS = 6.0
"""Calls take as much of the TTL as those of 0.5 to 2 s do of 30."""

MOST_CONNECTIONS = {3: 3, 2: WORKERS + 3}
"""One to write (or a batch's, where a key is a call), one to follow, and one of each that is just ending."""


def test_a_store_that_is_slow(etcd: Etcd, version: int, reader: Store) -> None:
    """Every answer takes its time: nothing expires meanwhile, and calls do not pile up."""
    source = StubSource(web())
    with closing(Relay(etcd.port)) as relay:
        relay.delay_seconds = SLOW_SECONDS
        store = open_store(f"etcd{version}://127.0.0.1:{relay.port}", StoreOptions(timeout_seconds=5))
        registrator = Registrator(store, source, ttl_seconds=SLOW_TTL_SECONDS)
        with closing(store), capture_logs() as logs, in_thread(registrator.run):
            until_keys(reader, ALL)
            created = reader.snapshot("/services/").entries[f"{H}{ME}"].created
            over = time.monotonic() + SLOW_TTL_SECONDS
            waits = threading.Event()
            # Faster than it can be written.
            for port in itertools.count(8001):
                source.say(web(), Registration("other", web("n1:other:80", port).instance))
                if waits.wait(0.1) or time.monotonic() > over:
                    break
            last = {**ALL, "/services/other/hosts/n1:other:80": f"192.0.2.7:{port}"}
            until(lambda: last.items() <= keys(reader).items(), "the last word", 10)
            source.say(web())
            until_keys(reader, ALL)
            assert reader.snapshot("/services/").entries[f"{H}{ME}"].created == created, "never expired"
            assert relay.most_open <= MOST_CONNECTIONS[version]
        assert keys(reader) == {}
    assert {"session_lost", "registration_failed"}.isdisjoint(each["event"] for each in logs)


@pytest.mark.parametrize("version", [3], ids=["etcd3"])
def test_a_store_that_is_slower_than_the_ttl(etcd: Etcd, version: int, reader: Store) -> None:
    """Its keys cannot be kept alive: sessions are lost, and made anew, until it is quicker."""
    source = StubSource(web())
    with closing(Relay(etcd.port)) as relay:
        store = open_store(f"etcd{version}://127.0.0.1:{relay.port}", StoreOptions(timeout_seconds=5))
        registrator = Registrator(store, source, ttl_seconds=TTL_SECONDS)
        with closing(store), capture_logs() as logs, in_thread(registrator.run):
            until_keys(reader, ALL)
            relay.delay_seconds = (1.2 * TTL_SECONDS, 1.4 * TTL_SECONDS)
            until(lambda: "session_lost" in {each["event"] for each in logs}, "it is too slow", 40)
            relay.delay_seconds = (0.0, 0.0)
            until_keys(reader, ALL)
            stays_so(reader, ALL)
            until(lambda: registrator.status.error is None, "it says so")


@pytest.mark.parametrize("version", [3], ids=["etcd3"])
def test_a_lease_that_an_operator_revokes(etcd: Etcd, version: int, reader: Store) -> None:
    with registering(etcd, version, StubSource(web())):
        until_keys(reader, ALL)
        lease = etcd.ctl(3, "lease", "list").split()[-1]
        etcd.ctl(3, "lease", "revoke", lease)
        until_keys(reader, ALL)
        stays_so(reader, ALL)


@pytest.mark.parametrize("version", [3], ids=["etcd3"])
def test_a_store_that_refuses_is_tried_until_it_does_not(etcd: Etcd, version: int, reader: Store) -> None:
    source = StubSource(web())
    with registering(etcd, version, source) as registrator:
        until_keys(reader, ALL)
        etcd.ctl(3, "user", "add", "root:secret")
        etcd.ctl(3, "user", "grant-role", "root", "root")
        etcd.ctl(3, "auth", "enable")
        source.say(web(port=8001))
        until(lambda: registrator.status.error is not None, "it is refused")
        assert registrator.status.problems == (), "that is no service's fault"
        etcd.ctl(3, "--user=root:secret", "auth", "disable")
        expected = {**ALL, f"{H}{ME}": "192.0.2.7:8001"}
        until_keys(reader, expected)
        stays_so(reader, expected)
        until(lambda: registrator.status.error is None, "it says so")


def test_one_service_that_a_store_of_files_refuses(tmp_path: Path) -> None:
    """A file where a directory has to be, as an operator's slip makes one."""
    root = tmp_path / "store"
    (root / "services" / "bad").mkdir(parents=True)
    (root / "services" / "bad" / "hosts").write_text("here")
    bad = Registration("bad", web("n1:bad:80", 8005).instance)
    source = StubSource(bad, web())
    with closing(open_store(f"file://{root}")) as store:
        registrator = Registrator(store, source, ttl_seconds=TTL_SECONDS)
        with in_thread(registrator.run):
            until(
                lambda: f"{H}{ME}" in keys(store), "the other is registered", detail=lambda: str(keys(store))
            )
            until(lambda: any(each.service == "bad" for each in registrator.status.problems), "reported")
            (root / "services" / "bad" / "hosts").unlink()
            until(lambda: "/services/bad/hosts/n1:bad:80" in keys(store), "registered once it can be", 90)
