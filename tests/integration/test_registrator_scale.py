"""Many containers on one node: what is asked of the engine and of the store, counted, not timed."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from discovery.registrator import Registrator
from discovery.sources.announce import AnnounceSource
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store
from discovery.stores.base import Changes, Store
from tests.lab.etcd import Etcd
from tests.lab.fake_engine import FakeEngine
from tests.lab.thread import in_thread
from tests.lab.wait import until

COUNT = 200
"""Enough to tell one from all; tests.bench.registrator measures a thousand."""

RULES = Rules("n1", "192.0.2.7")


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as started:
        for number in range(COUNT):
            started.run(f"c{number}", ports={80: 10_000 + number}, env={"SERVICE_NAME": f"s{number % 20}"})
        started.age()
        yield started


def test_one_event_inspects_one_container(engine: FakeEngine) -> None:
    with closing(DockerSource(engine.url, RULES)) as source:
        engine.requests.clear()
        assert len(source.registrations()) == COUNT
        assert engine.requests["inspect"] == COUNT
        assert engine.requests["list"] == 1
        for act, count in ((engine.client.pause, COUNT - 1), (engine.client.unpause, COUNT)):
            engine.requests.clear()
            act("c100")
            until(lambda: source.wait(1), "stirred")
            assert len(source.registrations()) == count
            engine.requests -= Counter(pause=1, unpause=1, version=1)
            assert engine.requests == Counter(inspect=1)


def test_a_relist_inspects_nothing_that_is_the_same(engine: FakeEngine) -> None:
    now = 0.0
    with closing(DockerSource(engine.url, RULES, clock=lambda: now)) as source:
        source.registrations()
        engine.requests.clear()
        now = 61.0
        assert len(source.registrations()) == COUNT
        assert engine.requests["inspect"] == 0
        assert engine.requests["list"] == 1


def test_one_event_writes_only_what_it_changes(engine: FakeEngine) -> None:
    """All are registered; one is paused: its keys go, and no other is written."""
    with closing(open_store("memory:")) as store:
        registrator = Registrator(store, DockerSource(engine.url, RULES), ttl_seconds=30)
        with in_thread(registrator.run):
            until(lambda: registrator.status.registered == COUNT, "registered", 60)
            assert hosts(store) == COUNT
            revision = store.snapshot("/services/").revision
            engine.client.pause("c1")
            gone = {f"/services/s1/{part}/n1:c1:80": None for part in ("hosts", "attributes")}
            until(lambda: changed_since(store, revision).keys() >= gone.keys(), "withdrawn")
            assert changed_since(store, revision) == gone
            engine.client.unpause("c1")
            until(lambda: hosts(store) == COUNT, "registered again")


def test_at_rest_a_node_sends_keepalives_and_nothing_else(tmp_path: Path) -> None:
    """One for each third of the TTL, by etcd's own count; the watch has that to know that the store lives."""
    with Etcd(tmp_path, enable_v2=False) as etcd, closing(open_store(etcd.url(3))) as store:
        source = AnnounceSource("db", "10.0.0.5:5432", node="n1", scheme="tcp")
        registrator = Registrator(store, source, ttl_seconds=9)
        with in_thread(registrator.run):
            until(lambda: registrator.status.registered == 1, "registered")
            until(lambda: not asked_within(etcd, 4).keys() - {"LeaseKeepAlive"}, "at rest")
            began = time.monotonic()
            asked = asked_within(etcd, 7)
            thirds = (time.monotonic() - began) / 3
    assert asked.keys() == {"LeaseKeepAlive"}
    assert 1 <= asked["LeaseKeepAlive"] <= thirds + 1


def asked_within(etcd: Etcd, seconds: float) -> dict[str, float]:
    """By method, the requests of that time."""
    before = etcd.requests()
    threading.Event().wait(seconds)
    after = etcd.requests()
    counts = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in counts.items() if count}


def hosts(store: Store) -> int:
    return sum("/hosts/" in key for key in store.snapshot("/services/").entries)


def changed_since(store: Store, revision: int) -> Mapping[str, object]:
    def told() -> Iterator[Changes]:
        watch = store.watch("/services/", revision)
        for changes in watch:
            if not changes.changes:
                return
            yield changes

    return {each.key: each.entry for changes in told() for each in changes.changes}
