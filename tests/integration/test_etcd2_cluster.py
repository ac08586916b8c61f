"""The etcd2 store against three real members, of which some fail."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from discovery.errors import StoreUnavailable
from discovery.retry import Backoff
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Store
from tests.contract.mirror import Mirror
from tests.lab.etcd import EtcdCluster
from tests.lab.wait import until

PREFIX = "/services/"
KEY = f"{PREFIX}web/hosts/0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def members(cluster: EtcdCluster) -> Iterator[EtcdCluster]:
    """The cluster with all its members running, and no keys."""
    yield cluster
    for member in cluster.members:
        if member.running:
            member.thaw()
    cluster.start()
    if "/services" in cluster.ctl(2, "ls", "/"):
        cluster.ctl(2, "rm", "--recursive", "/services")


def opened(cluster: EtcdCluster, timeout_seconds: float = 15.0) -> "closing[Store]":
    return closing(open_store(cluster.url(2), StoreOptions(timeout_seconds=timeout_seconds)))


def test_calls_sessions_and_watches_survive_the_leader(members: EtcdCluster) -> None:
    with opened(members) as store:
        session = store.session(60)
        session.put({f"{PREFIX}s{n}/hosts/0": "1" for n in range(50)})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            members.leader().kill()
            session.put({KEY: "2"})
            session.keepalive()
            mirror.until(lambda: KEY in mirror.entries)
            assert len(store.snapshot(PREFIX).entries) == 51
            session.close()
            mirror.until_values({})


def test_a_watch_leaves_a_frozen_member(members: EtcdCluster) -> None:
    with opened(members) as store:
        store.put({KEY: "1"})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            # The member asked first is the one that is watched.
            members.members[0].freeze()
            store.put({KEY: "2"})
            mirror.until_values({KEY: "2"}, seconds=60)


def test_a_watch_leaves_a_member_that_is_cut_off_from_the_others(members: EtcdCluster) -> None:
    """It still answers plain reads, and long polls, from a state that may be old."""
    with opened(members, timeout_seconds=4) as store:
        store.put({KEY: "1"})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            for member in members.members[1:]:
                member.freeze()
            with pytest.raises(StoreUnavailable):
                mirror.until(lambda: False, seconds=60)
            with pytest.raises(StoreUnavailable):
                store.snapshot(PREFIX)
            with pytest.raises(StoreUnavailable):
                store.put({KEY: "2"})


def test_everything_goes_on_after_every_member_was_down(members: EtcdCluster) -> None:
    with opened(members, timeout_seconds=4) as store:
        store.put({KEY: "1"})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            members.kill()
            with pytest.raises(StoreUnavailable):
                mirror.until(lambda: False, seconds=60)
        with pytest.raises(StoreUnavailable):
            store.put({KEY: "2"})
        members.start()
        retry(lambda: store.put({KEY: "3"}))
        with Mirror(store, PREFIX) as mirror:
            assert mirror.values == {KEY: "3"}
            store.delete([KEY])
            mirror.until_values({})


def retry(call: object) -> None:
    """As every owner of a store does it."""
    assert callable(call)
    backoff, wait = Backoff(0.1, 1.0), threading.Event()

    def done() -> bool:
        try:
            call()
        except StoreUnavailable:
            wait.wait(backoff.next_seconds())
            return False
        return True

    until(done, "the store takes it", 60)


def test_a_single_dead_endpoint_of_several_is_passed_over(members: EtcdCluster, tmp_path: Path) -> None:
    alive = members.members[1]
    url = f"etcd2://127.0.0.1:1,[::1]:1,{alive.endpoint}"
    with closing(open_store(url, StoreOptions(timeout_seconds=10))) as store:
        store.put({KEY: "1"})
        with Mirror(store, PREFIX) as mirror:
            store.put({KEY: "2"})
            mirror.until_values({KEY: "2"})
