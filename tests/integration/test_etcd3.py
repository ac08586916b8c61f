"""The etcd3 store against real servers, beyond what every store is held to in tests/contract."""

import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from discovery.errors import HistoryLost, SessionLost, StoreRefused, StoreUnavailable
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Changes, Store
from tests.lab.etcd import Etcd, EtcdCluster, etcd35, free_ports
from tests.lab.wait import until

PREFIX = "/services/"


def opened(url: str, timeout_seconds: float = 10.0, **options: Any) -> "closing[Store]":
    return closing(open_store(url, StoreOptions(timeout_seconds=timeout_seconds, **options)))


def told(watch: Iterator[Changes], done: Callable[[dict[str, str | None]], bool], seconds: float = 60) -> Any:
    """Follow ``watch`` until ``done`` with the last value told of each key (None: deleted)."""
    values: dict[str, str | None] = {}
    deadline = time.monotonic() + seconds
    for changes in watch:
        values.update((one.key, one.entry.value if one.entry else None) for one in changes.changes)
        if done(values):
            return values
        assert time.monotonic() < deadline, f"not told in time, only: {values}"
    raise AssertionError("the watch ended")


def after(store: Store) -> Iterator[Changes]:
    """A watch from now on, already begun."""
    watch = store.watch(PREFIX, store.snapshot(PREFIX).revision)
    next(watch)
    return watch


@pytest.fixture(scope="module", params=["etcd", "etcd 3.5"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    binary = etcd35() if request.param == "etcd 3.5" else None
    with Etcd(tmp_path_factory.mktemp("etcd"), binary=binary) as etcd:
        yield etcd


@pytest.fixture
def store(server: Etcd) -> Iterator[Store]:
    with opened(server.url(3)) as store:
        yield store
        server.ctl(3, "del", "--prefix", "/")


# ---- one server, undisturbed ------------------------------------------------------------------------


def test_lists_10000_keys_of_600_bytes_and_more_than_a_page(store: Store) -> None:
    values = {f"{PREFIX}{number:05d}/hosts/0": f"{number:0600d}" for number in range(10_500)}
    store.put(values)
    snapshot = store.snapshot(PREFIX)
    assert {key: entry.value for key, entry in snapshot.entries.items()} == values


def test_catching_up_tells_each_revision_whole(store: Store) -> None:
    # More revisions than etcd sends to a watch that catches up in one message (1,000).
    began = store.snapshot(PREFIX).revision
    for number in range(1_100):
        store.put({f"{PREFIX}a": str(number), f"{PREFIX}b": str(number)})
    last: dict[str, str] = {}
    for changes in store.watch(PREFIX, began):
        last.update((one.key, one.entry.value) for one in changes.changes if one.entry)
        # Whoever stops here and goes on after this revision has seen both keys of it.
        assert last.get(f"{PREFIX}a") == last.get(f"{PREFIX}b")
        if last:
            assert changes.revision == began + int(last[f"{PREFIX}a"]) + 1
        if last.get(f"{PREFIX}a") == "1099":
            return


def test_bytes_that_are_no_text_arrive_as_escapes(server: Etcd, store: Store) -> None:
    server.ctl(3, "put", f"{PREFIX}odd", "a\udcffb")
    assert store.snapshot(PREFIX).entries[f"{PREFIX}odd"].value == "a\\xffb"


def test_a_value_that_etcd_cannot_take_is_refused(store: Store) -> None:
    with pytest.raises(StoreRefused, match="request is too large"):
        store.put({f"{PREFIX}big": "x" * 2_000_000})


def lease_of(server: Etcd, key: str) -> str:
    kv = json.loads(server.ctl(3, "get", key, "--write-out=json"))["kvs"][0]
    return f"{kv['lease']:x}"


@pytest.mark.parametrize("act", ["put", "delete", "keepalive"])
def test_a_revoked_lease_is_a_lost_session(server: Etcd, store: Store, act: str) -> None:
    session = store.session(30)
    session.put({f"{PREFIX}a": "1"})
    server.ctl(3, "lease", "revoke", lease_of(server, f"{PREFIX}a"))
    assert not store.snapshot(PREFIX).entries
    acts: dict[str, Callable[[], None]] = {
        "put": lambda: session.put({f"{PREFIX}a": "1"}),
        "delete": lambda: session.delete([f"{PREFIX}a"]),
        "keepalive": session.keepalive,
    }
    with pytest.raises(SessionLost, match="expired or was revoked"):
        acts[act]()
    for again in acts.values():
        with pytest.raises(SessionLost):
            again()
    session.close()


def test_one_lease_holds_all_keys_of_a_session(server: Etcd, store: Store) -> None:
    session = store.session(30)
    session.keepalive()
    session.put({f"{PREFIX}{number}": "x" for number in range(300)})
    session.put({f"{PREFIX}later": "x"})
    assert lease_of(server, f"{PREFIX}0") == lease_of(server, f"{PREFIX}later")
    session.close()
    assert not store.snapshot(PREFIX).entries


def test_compacted_history_is_lost(server: Etcd, store: Store) -> None:
    began = store.snapshot(PREFIX).revision
    store.put({f"{PREFIX}a": "1"})
    store.put({f"{PREFIX}a": "2"})
    server.ctl(3, "compaction", str(store.snapshot(PREFIX).revision))
    with pytest.raises(HistoryLost, match="compacted"):
        told(store.watch(PREFIX, began), lambda values: bool(values))


# ---- a server of one's own ----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path) as etcd:
        yield etcd


def test_a_quiet_watch_is_left_alone_and_frees_its_threads(own: Etcd) -> None:
    before = watching_threads()
    with opened(own.url(3), timeout_seconds=3) as store, structlog.testing.capture_logs() as logs:
        watch = after(store)
        quiet_until = time.monotonic() + 4  # longer than the time-out
        while time.monotonic() < quiet_until:
            assert not next(watch).changes
        assert logs == []
        watch.close()  # type: ignore[attr-defined]  # it is a generator
        until(lambda: watching_threads() <= before, "the watch's threads end")


def watching_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("etcd3-watch")}


def test_a_server_killed_and_started_again_during_a_watch(own: Etcd) -> None:
    with opened(own.url(3), timeout_seconds=60) as store, structlog.testing.capture_logs() as logs:
        watch = after(store)
        store.put({f"{PREFIX}a": "1"})
        told(watch, lambda values: values == {f"{PREFIX}a": "1"})
        own.kill()
        told(watch, lambda _: any(log["event"] == "store_watch_interrupted" for log in logs))
        own.start()
        store.put({f"{PREFIX}b": "2"})
        # Only what is new: nothing is told twice.
        assert told(watch, lambda values: bool(values)) == {f"{PREFIX}b": "2"}
        events = [log["event"] for log in logs]
        assert events == ["store_watch_interrupted", "store_watch_resumed"]


def test_a_server_made_anew_has_another_history(own: Etcd) -> None:
    with opened(own.url(3), timeout_seconds=60) as store:
        store.put({f"{PREFIX}a": "1"})
        watch = after(store)
        own.kill()
        shutil.rmtree(own.directory / "data")
        own.start()
        with pytest.raises(HistoryLost, match="made anew"):
            told(watch, lambda _: False)


def test_a_frozen_server_fails_a_call_and_is_noticed_by_a_watch(own: Etcd) -> None:
    with opened(own.url(3), timeout_seconds=4) as store:
        watch = after(store)
        own.freeze()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"{own.endpoint} does not answer in time"):
            store.snapshot(PREFIX)
        assert time.monotonic() - began < 1.5 * 4
        with pytest.raises(StoreUnavailable, match=own.endpoint):
            told(watch, lambda _: False)
        own.thaw()
        assert not store.snapshot(PREFIX).entries


def test_a_patient_watch_asks_nothing_while_a_session_is_kept_alive(own: Etcd) -> None:
    with opened(own.url(3), timeout_seconds=1) as store:
        session = store.session(60)
        session.put({f"{PREFIX}a": "1"})
        watch = store.watch(PREFIX, store.snapshot(PREFIX).revision, patience_seconds=2)
        next(watch)
        before = own.requests()["Range"]
        began = time.monotonic()
        for _ in watch:
            session.keepalive()
            if time.monotonic() - began > 4:
                break
        assert own.requests()["Range"] == before
        own.freeze()
        # Nobody is answered any more, so it asks, and finds out.
        with pytest.raises(StoreUnavailable, match=own.endpoint):
            told(watch, lambda _: False)
        own.thaw()


def test_nothing_listens() -> None:
    (port,) = free_ports(1)
    with opened(f"etcd3://127.0.0.1:{port}", 2) as store:
        with pytest.raises(StoreUnavailable, match=f"nothing listens at 127.0.0.1:{port}"):
            store.snapshot(PREFIX)
        with pytest.raises(StoreUnavailable, match="nothing listens"):
            told(store.watch(PREFIX, 1), lambda _: False)


def test_a_server_without_the_gateway_is_told_so(tmp_path: Path) -> None:
    with Etcd(tmp_path, extra=["--enable-grpc-gateway=false"]) as etcd, opened(etcd.url(3), 2) as store:
        with pytest.raises(StoreRefused, match="speaks no etcd v3 gateway"):
            store.snapshot(PREFIX)
        with pytest.raises(StoreRefused, match="speaks no etcd v3 gateway"):
            told(store.watch(PREFIX, 1), lambda _: False)


class Website(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<html>hello"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_something_else_than_an_etcd_is_told_so() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website) as website:
        threading.Thread(target=website.serve_forever, daemon=True).start()
        url = f"etcd3://127.0.0.1:{website.server_port}"
        with opened(url) as store, pytest.raises(StoreRefused, match="is it an etcd"):
            store.snapshot(PREFIX)
        website.shutdown()


# ---- three members ----------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path) as cluster:
        yield cluster


def url_from(cluster: EtcdCluster, first: Etcd) -> str:
    others = [member for member in cluster.members if member is not first]
    return "etcd3://" + ",".join(member.endpoint for member in [first, *others])


def status(member: Etcd) -> dict[str, Any]:
    answer = json.loads(member.ctl(3, "endpoint", "status", "--write-out=json"))
    return dict(answer[0]["Status"])


def test_the_leader_is_killed_during_a_watch_and_a_session(cluster: EtcdCluster) -> None:
    leader = cluster.leader()
    with opened(url_from(cluster, leader)) as store:
        session = store.session(60)
        watch = after(store)
        session.put({f"{PREFIX}before": "1"})
        leader.kill()
        session.keepalive()
        session.put({f"{PREFIX}after": "2"})
        told(watch, lambda values: values == {f"{PREFIX}before": "1", f"{PREFIX}after": "2"})
        session.close()
        told(watch, lambda values: values == {f"{PREFIX}before": None, f"{PREFIX}after": None})


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_frozen_member_costs_a_call_no_more_than_the_time_out(cluster: EtcdCluster, role: str) -> None:
    frozen = cluster.leader() if role == "leader" else cluster.followers()[0]
    with opened(url_from(cluster, frozen), timeout_seconds=6) as store:
        watch = after(store)
        frozen.freeze()
        store.put({f"{PREFIX}a": "1"})
        told(watch, lambda values: values == {f"{PREFIX}a": "1"})


def test_without_a_quorum_the_store_is_unavailable_until_it_returns(cluster: EtcdCluster) -> None:
    # The watch is on the member that stays: its server lives and answers, but has no leader.
    with opened(url_from(cluster, cluster.members[2]), timeout_seconds=4) as store:
        store.put({f"{PREFIX}a": "1"})
        watch = after(store)
        for member in cluster.members[:2]:
            member.kill()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.snapshot(PREFIX)
        with pytest.raises(StoreUnavailable):
            store.put({f"{PREFIX}a": "2"})
        assert time.monotonic() - began < 2 * 1.5 * 4
        with pytest.raises(StoreUnavailable, match="none of 3 etcd endpoints can be watched"):
            told(watch, lambda _: False)

        cluster.kill()
        with pytest.raises(StoreUnavailable):
            store.snapshot(PREFIX)
        cluster.start()
        # Either: a put that got no answer may have been done nevertheless.
        assert store.snapshot(PREFIX).entries[f"{PREFIX}a"].value in ("1", "2")


def test_a_call_waits_for_an_election_within_its_time_out(cluster: EtcdCluster) -> None:
    one, two, three = cluster.members
    with opened(url_from(cluster, one), timeout_seconds=60) as store:
        two.kill()
        three.kill()
        until(lambda: not status(one).get("leader"), "the member that is left knows no leader")
        two.start(wait=False)
        store.put({f"{PREFIX}a": "1"})


def test_history_compacted_while_cut_off_is_lost(cluster: EtcdCluster) -> None:
    member, other, _ = cluster.members
    with opened(member.url(3), timeout_seconds=60) as store:
        watch = after(store)
        member.kill()
        cluster.leader()
        other.ctl(3, "put", f"{PREFIX}a", "1")
        other.ctl(3, "put", f"{PREFIX}a", "2")
        other.ctl(3, "compaction", str(status(other)["header"]["revision"]))
        member.start()
        with pytest.raises(HistoryLost, match="compacted"):
            told(watch, lambda _: False)
