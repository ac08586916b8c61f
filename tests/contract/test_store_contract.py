"""What discovery.stores.base promises, held against every engine."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from discovery.errors import DiscoveryError, HistoryLost, SessionLost, StoreRefused
from discovery.stores.base import HEARTBEAT_SECONDS, Session, Store
from tests.contract.engines import Engine
from tests.contract.mirror import WAIT_SECONDS, Mirror, eventually


def values(store: Store, prefix: str) -> dict[str, str]:
    return {key: entry.value for key, entry in store.snapshot(prefix).entries.items()}


@contextlib.contextmanager
def kept_alive(*sessions: Session) -> Iterator[None]:
    """Keep sessions alive meanwhile, each at a quarter of its TTL. Only this thread may use them then."""
    stop = threading.Event()
    errors: list[DiscoveryError] = []

    def keep() -> None:
        while not stop.wait(min(session.ttl_seconds for session in sessions) / 4):
            for session in sessions:
                try:
                    session.keepalive()
                except DiscoveryError as error:
                    errors.append(error)
                    return

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors


# ---- reading and writing ----------------------------------------------------------------------------


def test_a_new_prefix_is_empty(store: Store, prefix: str) -> None:
    assert values(store, prefix) == {}


def test_put_get_delete(store: Store, other: Store, prefix: str) -> None:
    store.put({f"{prefix}a": "1", f"{prefix}d/b": "2", f"{prefix}d/e/c": ""})
    assert values(other, prefix) == {f"{prefix}a": "1", f"{prefix}d/b": "2", f"{prefix}d/e/c": ""}
    assert values(other, f"{prefix}d/") == {f"{prefix}d/b": "2", f"{prefix}d/e/c": ""}
    other.delete([f"{prefix}d/b", f"{prefix}absent", f"{prefix}none/at/all"])
    assert values(store, prefix) == {f"{prefix}a": "1", f"{prefix}d/e/c": ""}
    store.put({})
    store.delete([])


def test_an_entry_carries_its_key_and_revisions(store: Store, prefix: str) -> None:
    key = f"{prefix}a"
    store.put({key: "1"})
    first = store.snapshot(prefix).entries[key]
    assert first.key == key
    assert first.error is None
    store.put({key: "2"})
    second = store.snapshot(prefix).entries[key]
    assert second.value == "2"
    assert second.modified > first.modified
    # By a nanosecond on the file store, which has no other place to say that this is another writing.
    assert second.created == pytest.approx(first.created, abs=1000)
    assert second.created <= second.modified


def test_an_older_key_stays_older_when_it_is_put_again(store: Store, prefix: str) -> None:
    store.put({f"{prefix}old": "1"})
    store.put({f"{prefix}new": "1"})
    store.put({f"{prefix}old": "2"})
    entries = store.snapshot(prefix).entries
    assert entries[f"{prefix}old"].created < entries[f"{prefix}new"].created


def test_revisions_grow(store: Store, other: Store, prefix: str) -> None:
    before = store.snapshot(prefix).revision
    other.put({f"{prefix}a": "1"})
    after = store.snapshot(prefix).revision
    assert after > before
    other.delete([f"{prefix}a"])
    assert store.snapshot(prefix).revision > after


def test_a_prefix_is_a_directory_not_the_beginning_of_a_name(store: Store, prefix: str) -> None:
    store.put({f"{prefix}web/hosts/0": "1", f"{prefix}web2/hosts/0": "2", f"{prefix}webber": "3"})
    assert values(store, f"{prefix}web/") == {f"{prefix}web/hosts/0": "1"}


@pytest.mark.parametrize(
    "name",
    [
        "node1:web:8080", "a b", "a?b", "a#b", "a%b", "a%2Fb", "a+b", "a&b=c", "ä€😀", "a\\b", "a\"b'c",
        "*", "a;b", "~a", "-a", "a\nb", ".", "..", ".hidden", "_hidden", "x" * 300, "a/../b", "a//b", "nul\0",
    ],
)  # fmt: skip
def test_odd_keys_round_trip_or_are_refused(store: Store, other: Store, prefix: str, name: str) -> None:
    key = f"{prefix}odd/{name}"
    store.put({f"{prefix}odd/neighbour": "n"})
    neighbour = {f"{prefix}odd/neighbour": "n"}
    with Mirror(other, prefix) as mirror:
        try:
            store.put({key: "v"})
        except StoreRefused as refusal:
            assert str(refusal)
            assert values(store, prefix) == neighbour
            return
        assert values(other, prefix) == {**neighbour, key: "v"}
        mirror.until_values({**neighbour, key: "v"})
        store.delete([key])
        mirror.until_values(neighbour)
        assert values(store, prefix) == neighbour


@pytest.mark.parametrize(
    "value", ["ä€😀", "a\nb", "a\n", "\n", " a ", "a\r\n", "\t", "%3f&=+", '{"a": 1}', "x" * 60_000]
)
def test_odd_values_round_trip(store: Store, other: Store, prefix: str, value: str) -> None:
    store.put({f"{prefix}a": value})
    assert values(other, prefix) == {f"{prefix}a": value}


def test_bytes_that_are_no_text_arrive_as_escapes(engine: Engine, store: Store, prefix: str) -> None:
    with Mirror(store, prefix) as mirror:
        engine.put_bytes(f"{prefix}a", b"a\xff\xfeb")
        mirror.until_values({f"{prefix}a": "a\\xff\\xfeb"})
    assert values(store, prefix) == {f"{prefix}a": "a\\xff\\xfeb"}


def test_ten_thousand_keys_list(engine: Engine, store: Store, other: Store, prefix: str) -> None:
    keys = {f"{prefix}s{n % 1000}/hosts/{n}": f"{n:0600}" for n in range(10_000)}
    session = store.session(engine.ttl_seconds * 60)
    session.put(keys)
    assert values(other, prefix) == keys


# ---- watching ---------------------------------------------------------------------------------------


def test_list_and_watch_lose_nothing(store: Store, other: Store, prefix: str) -> None:
    """While one writes, another lists and follows, again and again; each ends with the truth."""
    done = threading.Event()

    def write() -> None:
        for number in range(150):
            key = f"{prefix}d{number % 7}/k{number % 30}"
            if number % 5 == 4:
                store.delete([key])
            else:
                store.put({key: str(number)})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    mirrors = []
    try:
        while not done.is_set():
            mirror = Mirror(other, prefix)
            mirrors.append(mirror)
            mirror.step()
            if len(mirrors) == 10:
                done.wait(WAIT_SECONDS)
    finally:
        writer.join()
    truth = values(store, prefix)
    assert truth
    for mirror in mirrors:
        with mirror:
            mirror.until_values(truth)


def test_changes_arrive_in_their_order_and_outside_the_prefix_not_at_all(
    store: Store, other: Store, prefix: str
) -> None:
    with Mirror(other, f"{prefix}in/") as mirror:
        for number in range(5):
            store.put({f"{prefix}out/{number}": "x"})
            store.put({f"{prefix}in/{number}": "x"})
            mirror.until(lambda number=number: f"{prefix}in/{number}" in mirror.entries)  # type: ignore[misc]
        assert mirror.seen == [f"{prefix}in/{number}" for number in range(5)]


def test_a_watch_goes_on_across_many_unrelated_changes(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    with Mirror(other, f"{prefix}in/") as mirror:
        session = store.session(engine.ttl_seconds * 60)
        for number in range(12):
            session.put({f"{prefix}out/k{n}": str(number) for n in range(100)})
            if number == 5:
                mirror.step()
        store.put({f"{prefix}in/a": "1"})
        mirror.until_values({f"{prefix}in/a": "1"})


def test_an_old_revision_delivers_everything_or_says_that_history_is_lost(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    old = store.snapshot(prefix).revision
    store.put({f"{prefix}first": "1"})
    session = store.session(engine.ttl_seconds * 60)
    for number in range(12):
        session.put({f"{prefix}out/k{n}": str(number) for n in range(100)})
    session.close()
    store.put({f"{prefix}last": "1"})
    for reader in (store, other):
        seen: set[str] = set()
        watch = reader.watch(prefix, old)
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            while f"{prefix}last" not in seen:
                assert time.monotonic() < deadline
                seen.update(change.key for change in next(watch).changes)
            assert f"{prefix}first" in seen
        except HistoryLost:
            # Recovery: a new snapshot has it all, and a watch from there goes on.
            with Mirror(reader, prefix) as mirror:
                assert set(mirror.entries) == {f"{prefix}first", f"{prefix}last"}
                store.put({f"{prefix}after": "1"})
                mirror.until(lambda mirror=mirror: f"{prefix}after" in mirror.entries)  # type: ignore[misc]
                store.delete([f"{prefix}after"])
        finally:
            watch.close()  # type: ignore[attr-defined]


def test_a_watch_taken_up_again_continues_where_it_was(store: Store, other: Store, prefix: str) -> None:
    with Mirror(other, prefix) as mirror:
        store.put({f"{prefix}a": "1"})
        mirror.until_values({f"{prefix}a": "1"})
    store.put({f"{prefix}b": "2"})
    store.delete([f"{prefix}a"])
    seen: list[tuple[str, str | None]] = []
    watch = other.watch(prefix, mirror.revision)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(seen) < 2:
        assert time.monotonic() < deadline
        for change in next(watch).changes:
            seen.append((change.key, change.entry.value if change.entry else None))
    assert sorted(seen) == [(f"{prefix}a", None), (f"{prefix}b", "2")]
    watch.close()  # type: ignore[attr-defined]


def test_a_watch_yields_heartbeats(store: Store, prefix: str) -> None:
    with Mirror(store, prefix) as mirror:
        assert mirror.step().changes == ()
        # Heartbeats wait, they do not spin; and a busy machine is late, not four seconds late.
        assert min(mirror.waits_seconds) > HEARTBEAT_SECONDS / 4
        assert max(mirror.waits_seconds) < HEARTBEAT_SECONDS + 4


def test_a_closed_watch_frees_its_threads(store: Store, prefix: str) -> None:
    before = threading.active_count()
    for number in range(3):
        with Mirror(store, prefix) as mirror:
            store.put({f"{prefix}a": str(number)})
            mirror.step()
    eventually(lambda: threading.active_count() <= before)


def test_two_watches_of_one_store_each_see_everything(store: Store, other: Store, prefix: str) -> None:
    with Mirror(other, prefix) as one, Mirror(other, f"{prefix}d/") as two:
        store.put({f"{prefix}d/a": "1", f"{prefix}b": "2"})
        one.until_values({f"{prefix}d/a": "1", f"{prefix}b": "2"})
        two.until_values({f"{prefix}d/a": "1"})


def test_a_removed_directory_takes_its_children(engine: Engine, store: Store, prefix: str) -> None:
    store.put({f"{prefix}s/web/hosts/{n}": "1" for n in range(3)} | {f"{prefix}s/web2/hosts/0": "2"})
    with Mirror(store, prefix) as mirror:
        engine.remove_directory(f"{prefix}s/web")
        mirror.until_values({f"{prefix}s/web2/hosts/0": "2"})
        assert sorted(mirror.seen) == [f"{prefix}s/web/hosts/{n}" for n in range(3)]
    assert values(store, prefix) == {f"{prefix}s/web2/hosts/0": "2"}


# ---- sessions ---------------------------------------------------------------------------------------


def test_keys_expire_after_the_ttl_and_a_watch_sees_it(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    store.put({f"{prefix}static": "s"})
    session = store.session(engine.ttl_seconds)
    began = time.monotonic()
    session.put({f"{prefix}a": "1", f"{prefix}d/b": "2"})
    with Mirror(other, prefix) as mirror:
        assert set(mirror.entries) == {f"{prefix}static", f"{prefix}a", f"{prefix}d/b"}
        mirror.until_values({f"{prefix}static": "s"}, engine.ttl_seconds + WAIT_SECONDS)
        assert time.monotonic() - began > engine.ttl_seconds * 0.8
    assert values(other, prefix) == {f"{prefix}static": "s"}


def test_expired_keys_are_not_listed(engine: Engine, store: Store, other: Store, prefix: str) -> None:
    """Without any watch that could have noticed."""
    store.session(engine.ttl_seconds).put({f"{prefix}a": "1"})
    assert values(other, prefix) == {f"{prefix}a": "1"}
    eventually(lambda: values(other, prefix) == {}, engine.ttl_seconds + WAIT_SECONDS)


def test_keepalive_keeps_keys_and_wakes_no_watcher(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    session = store.session(engine.ttl_seconds)
    session.put({f"{prefix}a": "1"})
    with Mirror(other, prefix) as mirror, kept_alive(session):
        began = time.monotonic()
        while time.monotonic() - began < engine.ttl_seconds * 2:
            assert mirror.step().changes == ()
        assert values(other, prefix) == {f"{prefix}a": "1"}
    session.close()


def test_a_ttl_outlives_the_store_that_wrote_it(engine: Engine, other: Store, prefix: str) -> None:
    with contextlib.closing(engine.open()) as writer:
        writer.session(engine.ttl_seconds).put({f"{prefix}a": "1"})
    with Mirror(other, prefix) as mirror:
        assert mirror.values == {f"{prefix}a": "1"}
        mirror.until_values({}, engine.ttl_seconds + WAIT_SECONDS)


def test_a_lost_session_says_so_and_a_new_one_puts_everything_again(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    keys = {f"{prefix}{name}": "1" for name in "abc"}
    session = store.session(engine.ttl_seconds)
    session.put(keys)
    eventually(lambda: values(other, prefix) == {}, engine.ttl_seconds + WAIT_SECONDS)
    with pytest.raises(SessionLost):
        session.keepalive()
    with pytest.raises(SessionLost):
        session.put({f"{prefix}d": "1"})
    assert values(other, prefix) == {}
    with Mirror(other, prefix) as mirror:
        again = store.session(engine.ttl_seconds)
        again.put(keys)
        mirror.until_values(keys)
        again.close()
        mirror.until_values({})


def test_closing_withdraws_all_keys_of_the_session_and_no_others(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    one, two = store.session(engine.ttl_seconds * 30), other.session(engine.ttl_seconds * 30)
    store.put({f"{prefix}static": "s"})
    one.put({f"{prefix}mine/{n}": "1" for n in range(3)})
    one.put({f"{prefix}shared": "1", f"{prefix}made-static": "1", f"{prefix}static": "1"})
    two.put({f"{prefix}shared": "2", f"{prefix}other": "2"})
    store.put({f"{prefix}made-static": "s"})
    with Mirror(other, prefix) as mirror:
        one.close()
        left = {f"{prefix}shared": "2", f"{prefix}other": "2", f"{prefix}made-static": "s"}
        mirror.until_values(left)
        assert values(store, prefix) == left
        two.close()
        mirror.until_values({f"{prefix}made-static": "s"})


def test_expiry_spares_keys_that_were_taken_over(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    lost, kept = store.session(engine.ttl_seconds), other.session(engine.ttl_seconds * 30)
    # The same values: ownership, not content, decides.
    lost.put({f"{prefix}mine": "1", f"{prefix}shared": "1", f"{prefix}made-static": "1"})
    kept.put({f"{prefix}shared": "1"})
    store.put({f"{prefix}made-static": "1"})
    left = {f"{prefix}shared": "1", f"{prefix}made-static": "1"}
    with Mirror(other, prefix) as mirror:
        mirror.until_values(left, engine.ttl_seconds + WAIT_SECONDS)
        mirror.step()
        assert mirror.values == left
    assert values(store, prefix) == left
    kept.close()


def test_a_session_deletes_single_keys(engine: Engine, store: Store, other: Store, prefix: str) -> None:
    session = store.session(engine.ttl_seconds * 30)
    session.put({f"{prefix}a": "1", f"{prefix}b": "2"})
    session.delete([f"{prefix}a", f"{prefix}absent"])
    assert values(other, prefix) == {f"{prefix}b": "2"}
    session.put({f"{prefix}a": "3"})
    assert values(other, prefix) == {f"{prefix}a": "3", f"{prefix}b": "2"}
    session.close()
    assert values(other, prefix) == {}


def test_many_keys_are_put_and_deleted_as_one_would_be(store: Store, prefix: str) -> None:
    """More than a server takes in one request, static and of a session."""
    session = store.session(60)
    for count in (127, 128, 129, 300):
        keys = {f"{prefix}{number}": "1" for number in range(count)}
        store.put(keys)
        assert values(store, prefix) == keys
        store.delete(keys)
        assert values(store, prefix) == {}
        session.put(keys)
        assert values(store, prefix) == keys
        session.delete(keys)
        assert values(store, prefix) == {}
    session.close()


def test_a_session_deletes_no_key_that_was_taken_over(store: Store, other: Store, prefix: str) -> None:
    one, two = store.session(60), other.session(60)
    one.put({f"{prefix}mine": "1", f"{prefix}shared": "1", f"{prefix}made-static": "1"})
    two.put({f"{prefix}shared": "1"})
    other.put({f"{prefix}made-static": "1"})
    one.delete([f"{prefix}mine", f"{prefix}shared", f"{prefix}made-static"])
    assert values(other, prefix) == {f"{prefix}shared": "1", f"{prefix}made-static": "1"}
    one.close()
    two.close()


def test_a_key_removed_by_someone_else_can_be_put_again(
    engine: Engine, store: Store, other: Store, prefix: str
) -> None:
    session = store.session(engine.ttl_seconds * 30)
    session.put({f"{prefix}a": "1", f"{prefix}b": "2"})
    other.delete([f"{prefix}a"])
    session.put({f"{prefix}a": "1"})
    session.keepalive()
    assert values(other, prefix) == {f"{prefix}a": "1", f"{prefix}b": "2"}
    session.close()
    assert values(other, prefix) == {}


def test_a_keepalive_of_a_thousand_keys(engine: Engine, store: Store, other: Store, prefix: str) -> None:
    """More events than etcd v2 remembers, had each key's refresh been one that a watcher must read."""
    keys = {f"{prefix}s{n}/hosts/0": f"10.0.0.1:{n + 1}" for n in range(1010)}
    session = store.session(engine.ttl_seconds * 60)
    session.put(keys)
    with Mirror(other, f"{prefix}in/") as mirror:
        session.keepalive()
        mirror.step()
        store.put({f"{prefix}in/a": "1"})
        mirror.until_values({f"{prefix}in/a": "1"})
    assert values(other, prefix) == {**keys, f"{prefix}in/a": "1"}
    session.close()
    assert values(other, prefix) == {f"{prefix}in/a": "1"}
