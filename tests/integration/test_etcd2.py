"""The etcd2 store against one real server, beyond what every store is held to in tests/contract."""

import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from discovery.errors import ConfigError, HistoryLost, SessionLost, StoreRefused, StoreUnavailable
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Entry, Session, Store
from tests.contract.mirror import Mirror
from tests.integration.test_etcd3_access import Certificates
from tests.lab.etcd import Etcd, etcd35
from tests.lab.wait import until

PREFIX = "/services/"
WEB = f"{PREFIX}web/hosts/"
TIMEOUT_SECONDS = 2.0


def opened(url: str, timeout_seconds: float = 10.0) -> "closing[Store]":
    return closing(open_store(url, StoreOptions(timeout_seconds=timeout_seconds)))


@pytest.fixture(scope="module", params=["etcd", "etcd 3.5"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    binary = etcd35() if request.param == "etcd 3.5" else None
    with Etcd(tmp_path_factory.mktemp("etcd"), binary=binary) as etcd:
        yield etcd


@pytest.fixture
def server(shared: Etcd) -> Iterator[Etcd]:
    """A running server without keys."""
    yield shared
    if "/services" in shared.ctl(2, "ls", "/"):
        shared.ctl(2, "rm", "--recursive", "/services")


@pytest.fixture
def store(server: Etcd) -> Iterator[Store]:
    with opened(server.url(2)) as store:
        yield store


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Etcd]:
    """A server for one test, that may do with it what it likes."""
    with Etcd(tmp_path) as etcd:
        yield etcd


def entries(store: Store) -> dict[str, Entry]:
    return dict(store.snapshot(PREFIX).entries)


def raw(server: Etcd, method: str, key: str, **form: str) -> None:
    """A request that etcdctl cannot make."""
    data = urllib.parse.urlencode(form).encode()
    url = f"http://{server.endpoint}/v2/keys{key}"
    urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=10).close()


def lose_history(store: Store) -> None:
    """More events than etcd keeps, by refreshes of foreign keys."""
    session = store.session(60)
    session.put({f"/elsewhere/{n}": "1" for n in range(101)})
    for _ in range(10):
        session.keepalive()
    session.close()


# ---- events -----------------------------------------------------------------------------------------


def test_every_kind_of_write_is_told(server: Etcd, store: Store) -> None:
    with Mirror(store, PREFIX) as mirror:
        server.ctl(2, "mkdir", f"{PREFIX}web")
        server.ctl(2, "mk", f"{PREFIX}web/a", "made")
        server.ctl(2, "set", f"{PREFIX}web/a", "set")
        server.ctl(2, "update", f"{PREFIX}web/a", "updated")
        server.ctl(2, "set", "--swap-with-value", "updated", f"{PREFIX}web/a", "swapped")
        raw(server, "POST", f"{PREFIX}queue", value="in order")
        mirror.until(lambda: "in order" in mirror.values.values())
        assert [key for key in mirror.seen if key == f"{PREFIX}web/a"] == [f"{PREFIX}web/a"] * 4
        assert mirror.values[f"{PREFIX}web/a"] == "swapped"
        raw(server, "PUT", f"{PREFIX}web/a", dir="true")
        mirror.until(lambda: f"{PREFIX}web/a" not in mirror.entries)
        server.ctl(2, "rm", "--recursive", PREFIX)
        mirror.until_values({})


def test_a_directory_expires_with_all_its_keys(server: Etcd, store: Store) -> None:
    store.put({f"{PREFIX}api/scheme": "http"})
    # etcd 3.5 cannot give a TTL to a directory that exists (`updatedir`).
    server.ctl(2, "mkdir", "--ttl", "3", f"{PREFIX}web")
    store.put({f"{WEB}0": "1", f"{PREFIX}web/scheme": "http"})
    with Mirror(store, PREFIX) as mirror:
        assert len(mirror.entries) == 3
        mirror.until_values({f"{PREFIX}api/scheme": "http"})
        assert mirror.seen == [f"{WEB}0", f"{PREFIX}web/scheme"]
    assert set(entries(store)) == {f"{PREFIX}api/scheme"}


def test_a_directory_deleted_while_no_one_watched_is_told_later(server: Etcd, store: Store) -> None:
    store.put({f"{WEB}0": "1", f"{WEB}1": "1"})
    with Mirror(store, PREFIX) as mirror:
        store.put({f"{WEB}2": "1"})
        mirror.until(lambda: f"{WEB}2" in mirror.entries)
    server.ctl(2, "rm", "--recursive", f"{PREFIX}web")
    seen: list[str] = []
    for changes in store.watch(PREFIX, mirror.revision):
        seen += [change.key for change in changes.changes if change.entry is None]
        if len(seen) == 3:
            break
    assert seen == [f"{WEB}0", f"{WEB}1", f"{WEB}2"]


def test_a_directory_whose_keys_no_one_knows_is_lost_history(server: Etcd, store: Store) -> None:
    store.put({f"{WEB}0": "1"})
    revision = store.snapshot(PREFIX).revision
    server.ctl(2, "rm", "--recursive", f"{PREFIX}web")
    with opened(server.url(2)) as stranger, pytest.raises(HistoryLost):
        for _ in stranger.watch(PREFIX, revision):
            pass


def test_foreign_refreshes_wear_history_out_but_lose_nothing(store: Store) -> None:
    store.put({f"{WEB}0": "1"})
    with Mirror(store, PREFIX) as mirror:
        # The watch has not begun; when it does, its index is too old for the server.
        lose_history(store)
        mirror.step()
        store.put({f"{WEB}1": "1"})
        mirror.until_values({f"{WEB}0": "1", f"{WEB}1": "1"})
        lose_history(store)
        store.put({f"{WEB}2": "1"})
        mirror.until(lambda: f"{WEB}2" in mirror.entries)


def test_own_refreshes_do_not_pass_for_changes(store: Store) -> None:
    session = store.session(60)
    session.put({f"{WEB}0": "1"})
    with Mirror(store, PREFIX) as mirror:
        session.keepalive()
        lose_history(store)
        session.keepalive()
        assert mirror.step().changes == ()
        store.put({f"{WEB}1": "1"})
        mirror.until(lambda: f"{WEB}1" in mirror.entries)
    session.close()


def test_a_change_among_the_lost_events_is_lost_history(store: Store) -> None:
    store.put({f"{WEB}0": "1"})
    with Mirror(store, PREFIX) as mirror:
        store.put({f"{WEB}0": "2"})
        lose_history(store)
        with pytest.raises(HistoryLost):
            mirror.until_values({f"{WEB}0": "2"})


def test_a_closed_watch_ends_its_poll_at_once(store: Store) -> None:
    def watching() -> bool:
        return any(thread.name.startswith("etcd2-watch") for thread in threading.enumerate())

    with Mirror(store, PREFIX) as mirror:
        mirror.step()
        assert watching()
    until(lambda: not watching(), "the threads of the watch end")


def test_a_watch_of_a_closed_store_ends(server: Etcd) -> None:
    store = open_store(server.url(2), StoreOptions(timeout_seconds=10))
    with Mirror(store, PREFIX) as mirror:
        mirror.step()
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            mirror.until(lambda: False)
    with pytest.raises(StoreUnavailable, match="closed"):
        store.put({f"{WEB}0": "1", f"{WEB}1": "1"})


# ---- keys and values --------------------------------------------------------------------------------


def test_hidden_keys_are_refused(store: Store) -> None:
    with pytest.raises(StoreRefused, match="begins with _"):
        store.put({f"{WEB}_0": "1"})


def test_bytes_that_are_no_text_come_as_etcd_sends_them(server: Etcd, store: Store) -> None:
    request = urllib.request.Request(f"http://{server.endpoint}/v2/keys{WEB}0", b"value=a%FFb", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    assert entries(store)[f"{WEB}0"].value == "a\ufffdb"


@pytest.mark.parametrize("value", ["", "1"])
def test_a_key_is_never_written_onto_a_directory(server: Etcd, store: Store, value: str) -> None:
    store.put({f"{WEB}0": "1"})
    session = store.session(1)
    with pytest.raises(StoreRefused, match="Not a file"):
        session.put({f"{PREFIX}web": value})
    with pytest.raises(StoreRefused, match="Not a directory"):
        session.put({f"{WEB}0/deeper": value})
    # No TTL either: that would take the whole directory away.
    assert "ttl" not in server.ctl(2, "-o", "json", "ls", "--recursive", PREFIX)
    session.keepalive()
    session.close()
    store.delete([f"{PREFIX}web", f"{WEB}0/deeper"])
    assert set(entries(store)) == {f"{WEB}0"}


# ---- sessions ---------------------------------------------------------------------------------------


def test_a_key_that_another_program_set_is_not_prolonged_and_not_removed(server: Etcd, store: Store) -> None:
    session = store.session(60)
    session.put({f"{WEB}0": "1", f"{WEB}1": "1", f"{WEB}2": "1"})
    server.ctl(2, "set", "--ttl", "1", f"{WEB}0", "1")
    server.ctl(2, "set", f"{WEB}1", "1")
    with Mirror(store, PREFIX) as mirror:
        session.keepalive()
        mirror.until(lambda: f"{WEB}0" not in mirror.entries)
        session.keepalive()
        session.close()
        mirror.until_values({f"{WEB}1": "1"})


def test_a_put_keeps_the_age_of_a_key_and_takes_its_ttl_away(server: Etcd, store: Store) -> None:
    server.ctl(2, "set", "--ttl", "1", f"{WEB}0", "1")
    before = entries(store)[f"{WEB}0"]
    store.put({f"{WEB}0": "2", f"{WEB}1": "1"})
    server.ctl(2, "set", "--ttl", "1", f"{WEB}2", "1")
    # Both would have expired by now.
    until(lambda: f"{WEB}2" not in entries(store), "the last one expires")
    after = entries(store)[f"{WEB}0"]
    assert (after.value, after.created) == ("2", before.created)


def test_a_key_that_was_deleted_is_a_lost_session(server: Etcd, store: Store) -> None:
    session = store.session(60)
    session.put({f"{WEB}{n}": "1" for n in range(20)})
    server.ctl(2, "rm", f"{WEB}7")
    with pytest.raises(SessionLost, match=f"{WEB}7"):
        session.keepalive()
    again = store.session(60)
    again.put({f"{WEB}{n}": "1" for n in range(20)})
    with pytest.raises(SessionLost):
        session.close()
    assert len(entries(store)) == 20
    again.close()
    assert entries(store) == {}


def test_requests_without_an_answer_leave_the_keys_ours(own: Etcd) -> None:
    """What the server has received before it froze, it may carry out when it is thawed, unseen by us."""
    old, new = {f"{WEB}{n}": "1" for n in range(8)}, {f"{WEB}{n}": "2" for n in range(4, 12)}
    with opened(own.url(2), timeout_seconds=1) as hasty, opened(own.url(2)) as store:
        session = hasty.session(60)
        session.put(old)
        own.freeze()
        with pytest.raises(StoreUnavailable):
            session.keepalive()
        with pytest.raises(StoreUnavailable):
            session.put(new)
        own.thaw()
        assert set(entries(store)) >= set(old)
        until(lambda: kept(session), "the server answers in time again")
        assert set(entries(store)) >= set(old)
        session.close()
        assert entries(store) == {}


def kept(session: Session) -> bool:
    try:
        session.keepalive()
    except StoreUnavailable:
        return False
    return True


# ---- the server fails -------------------------------------------------------------------------------


def test_a_watch_goes_on_when_its_server_comes_back(own: Etcd) -> None:
    with opened(own.url(2), timeout_seconds=30) as store:
        store.put({f"{WEB}0": "1"})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            own.kill()
            assert mirror.step().changes == ()
            own.start()
            own.ctl(2, "rm", "--recursive", f"{PREFIX}web")
            own.ctl(2, "set", f"{WEB}1", "1")
            mirror.until_values({f"{WEB}1": "1"})


def test_a_server_that_stays_away_ends_the_watch(own: Etcd) -> None:
    with opened(own.url(2), TIMEOUT_SECONDS) as store, Mirror(store, PREFIX) as mirror:
        mirror.step()
        own.kill()
        with pytest.raises(StoreUnavailable, match="refused"):
            mirror.until(lambda: False, seconds=60)
        with pytest.raises(StoreUnavailable, match="refused"):
            store.snapshot(PREFIX)


def test_a_frozen_server_fails_calls_and_watches(own: Etcd) -> None:
    with opened(own.url(2), TIMEOUT_SECONDS) as store:
        store.put({f"{WEB}{n}": "1" for n in range(50)})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            own.freeze()
            session = store.session(60)
            for call in (
                lambda: store.snapshot(PREFIX),
                lambda: store.put({f"{WEB}a": "1"}),
                lambda: session.put({f"{WEB}{n}": "1" for n in range(50)}),
            ):
                began = time.monotonic()
                with pytest.raises(StoreUnavailable, match="no answer in time"):
                    call()
                # The bound.
                assert TIMEOUT_SECONDS * 0.9 < time.monotonic() - began < TIMEOUT_SECONDS * 1.5
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                mirror.until(lambda: False, seconds=60)
            # A heartbeat comes in time all the while.
            assert max(mirror.waits_seconds[:-1], default=0) < 5
        own.thaw()
        until(lambda: len(entries(store)) >= 50, "it answers again")


def test_a_cluster_made_anew_is_lost_history(own: Etcd) -> None:
    with opened(own.url(2), timeout_seconds=30) as store:
        store.put({f"{WEB}{n}": "1" for n in range(20)})
        with Mirror(store, PREFIX) as mirror:
            mirror.step()
            own.kill()
            shutil.rmtree(own.directory / "data")
            own.start()
            with pytest.raises(HistoryLost):
                mirror.until(lambda: False, seconds=60)
        assert entries(store) == {}


# ---- access -----------------------------------------------------------------------------------------


def test_a_server_without_v2_says_exactly_that(tmp_path: Path) -> None:
    with Etcd(tmp_path, enable_v2=False) as etcd, opened(etcd.url(2)) as store:
        for call in (
            lambda: store.snapshot(PREFIX),
            lambda: store.put({f"{WEB}0": "1"}),
            lambda: next(store.watch(PREFIX, 1)),
            lambda: store.session(5).put({f"{WEB}0": "1"}),
        ):
            with pytest.raises(StoreRefused, match=r"has no v2 API: .*--enable-v2.* or use etcd3://"):
                call()


def test_user_and_password(own: Etcd) -> None:
    password = "p:w@é"
    own.ctl(2, "user", "add", f"root:{password}")
    own.ctl(2, "auth", "enable")
    own.ctl(2, "--username", f"root:{password}", "role", "revoke", "guest", "--path", "/*", "--readwrite")
    quoted = urllib.parse.quote(password, safe="")
    with opened(f"etcd2://root:{quoted}@{own.endpoint}") as store:
        assert "root" not in store.url
        with Mirror(store, PREFIX) as mirror:
            store.put({f"{WEB}0": "1", f"{WEB}1": "1"})
            mirror.until_values({f"{WEB}0": "1", f"{WEB}1": "1"})
    for url in (f"etcd2://root:wrong@{own.endpoint}", own.url(2)):
        with opened(url) as store, pytest.raises(StoreRefused, match="user or password") as caught:
            store.snapshot(PREFIX)
        assert "wrong" not in str(caught.value)


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    made.make("ca", "server", "client")
    flags = [f"--cert-file={made('server.pem')}", f"--key-file={made('server.key')}"]
    flags += ["--client-cert-auth", f"--trusted-ca-file={made('ca.pem')}"]
    options = StoreOptions(ca_file=made("ca.pem"), cert_file=made("client.pem"), key_file=made("client.key"))
    with Etcd(tmp_path, extra=flags, scheme="https") as etcd:
        with closing(open_store(f"etcd2://{etcd.endpoint}", options)) as store:
            with Mirror(store, PREFIX) as mirror:
                store.put({f"{WEB}0": "1"})
                mirror.until_values({f"{WEB}0": "1"})
            until(
                lambda: not [t for t in threading.enumerate() if t.name.startswith("etcd2-watch")],
                "over TLS, too, the watch ends",
            )
        with (
            opened(etcd.url(2)) as stranger,
            pytest.raises(StoreUnavailable, match=r"TLS fails: .*certificate"),
        ):
            stranger.snapshot(PREFIX)


@pytest.mark.parametrize(
    "url", ["etcd2://", "etcd2://h:99999", "etcd2://::1:2379", "etcd2://u@h", "etcd2://h/x"]
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        open_store(url)
