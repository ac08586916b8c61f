"""The watcher over the memory store, whole or failing in each way a store may fail."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from discovery.builder import CatalogBuilder
from discovery.catalog import Catalog
from discovery.errors import HistoryLost, StoreError, StoreUnavailable
from discovery.feed import Feed
from discovery.lastgood import LastGood
from discovery.stores import open_store
from discovery.stores.base import Changes, Entry, Session, Snapshot, Store
from discovery.watcher import MOST_SAVE_SECONDS, RELIST_SECONDS, SAVE_SECONDS, KeysFold, Watcher
from tests.lab.wait import until

PREFIX = "/services/"
WEB = {"/services/web/hosts/0": "192.0.2.1:80"}
HOLD_SECONDS = 30.0


class Failing:
    """A store that fails where it is told to; else the store it wraps."""

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self.store = store
        self.snapshot_error: StoreError | None = None
        self.watch_error: StoreError | None = None
        self.snapshots = 0
        self.is_deaf = False

    def snapshot(self, prefix: str) -> Snapshot:
        self.snapshots += 1
        if self.snapshot_error:
            raise self.snapshot_error
        return self.store.snapshot(prefix)

    def watch(self, prefix: str, revision: int, patience_seconds: float | None = None) -> Iterator[Changes]:
        if self.watch_error:
            raise self.watch_error
        for changes in self.store.watch(prefix, revision):
            if self.watch_error:
                raise self.watch_error
            yield Changes(changes.revision) if self.is_deaf else changes

    def fail(self, error: StoreError | None) -> None:
        self.snapshot_error = self.watch_error = error
        self.wake()

    def wake(self) -> None:
        """Have the watch yield now rather than at its heartbeat; the key is of no service."""
        self.store.put({"/services/!/x": ""})
        self.store.delete(["/services/!/x"])

    def session(self, ttl_seconds: float) -> Session:
        return self.store.session(ttl_seconds)

    def put(self, values: Mapping[str, str]) -> None:
        self.store.put(values)

    def delete(self, keys: Iterable[str]) -> None:
        self.store.delete(keys)

    def close(self) -> None:
        self.store.close()


class Site:
    """A store, a watcher on it in a thread, and the feed it fills."""

    def __init__(self, path: Path | None = None) -> None:
        self.store = Failing(open_store("memory:"))
        self.feed: Feed[Catalog] = Feed()
        self.now_seconds = 0.0
        self.last_good = LastGood(path / "last-good.json") if path else None
        self.watcher = Watcher(
            self.store,
            PREFIX,
            CatalogBuilder(),
            self.feed,
            hold_seconds=HOLD_SECONDS,
            last_good=self.last_good,
            clock=lambda: self.now_seconds,
        )

    @property
    def services(self) -> set[str] | None:
        latest = self.feed.latest
        return None if latest is None else set(latest.value.services)

    def until_services(self, *names: str) -> None:
        until(lambda: self.services == set(names), f"services {names}", detail=lambda: repr(self.feed.latest))

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self.watcher.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            self.store.wake()
            thread.join(20)
            assert not thread.is_alive()


def events(logs: Iterable[Mapping[str, object]]) -> list[object]:
    return [log["event"] for log in logs]


def test_what_is_there_and_what_comes_and_goes_is_published() -> None:
    site = Site()
    site.store.put({**WEB, "/edges/n1": "{}"})
    with capture_logs() as logs, site.running():
        site.until_services("web")
        assert (site.watcher.connected, site.watcher.read_once, site.watcher.held) == (True, True, 0)
        site.store.put({"/services/db/scheme": "tcp"})
        site.until_services("web", "db")
        site.store.delete(WEB)
        site.until_services("db")
        assert site.feed.latest is not None
        assert site.feed.latest.value.revision == site.store.snapshot(PREFIX).revision
    assert site.store.snapshots == 2
    assert events(logs) == ["store_connected"]


def test_empty_store_is_published_as_empty() -> None:
    site = Site()
    with site.running():
        site.until_services()
        assert site.watcher.read_once


def test_unreachable_store_publishes_nothing_and_is_reported_once() -> None:
    site = Site()
    site.store.fail(StoreUnavailable("no answer"))
    with capture_logs() as logs, site.running():
        until(lambda: site.store.snapshots >= 3, "three tries")
        assert site.feed.latest is None
        assert (site.watcher.connected, site.watcher.read_once) == (False, False)
        site.store.put(WEB)
        site.store.fail(None)
        site.until_services("web")
        site.store.wake()
        until(lambda: "store_connected" in events(logs), "the recovery is reported")
    assert events(logs) == ["store_unreachable", "store_connected"]


def test_store_that_goes_away_withdraws_nothing() -> None:
    site = Site()
    site.store.put(WEB)
    with capture_logs() as logs, site.running():
        site.until_services("web")
        site.store.wake()
        until(lambda: "store_connected" in events(logs), "the watch runs")
        before = site.feed.latest
        site.store.fail(StoreUnavailable("gone"))
        until(lambda: not site.watcher.connected, "the outage is seen")
        tries = site.store.snapshots
        until(lambda: site.store.snapshots >= tries + 2, "more tries")
        assert site.feed.latest is before
        assert site.watcher.read_once
        site.store.put({"/services/db/scheme": "tcp"})
        site.store.fail(None)
        site.until_services("web", "db")
    assert events(logs)[:2] == ["store_connected", "store_unreachable"]


def test_mass_loss_in_an_outage_is_held_back_for_its_time_only() -> None:
    """etcd v2, stopped for longer than the TTL, comes back without the keys."""
    site = Site()
    site.store.put({**WEB, "/services/db/hosts/0": "192.0.2.2:80"})
    with site.running():
        site.until_services("web", "db")
        site.store.fail(StoreUnavailable("gone"))
        until(lambda: not site.watcher.connected, "the outage is seen")
        site.store.delete([*WEB, "/services/db/hosts/0"])
        site.store.fail(None)
        until(lambda: site.watcher.connected, "the store is back")
        until(lambda: site.watcher.held == 2, "both are held")
        assert site.services == {"web", "db"}
        site.store.put(WEB)
        until(lambda: site.watcher.held == 1, "one is there again")
        # The release needs no change: a heartbeat is enough.
        site.now_seconds = HOLD_SECONDS
        site.until_services("web")


def test_lost_history_is_made_up_for_by_a_new_snapshot() -> None:
    """What is gone by then may have been lost by the store, which was made anew: it is held for its time."""
    site = Site()
    site.store.put({**WEB, "/services/old/scheme": "http"})
    with capture_logs() as logs, site.running():
        site.until_services("web", "old")
        site.store.watch_error = HistoryLost("made anew")
        site.store.delete(["/services/old/scheme"])
        site.store.put({"/services/new/scheme": "http"})
        until(lambda: "watch_history_lost" in events(logs), "the loss is seen")
        site.store.watch_error = None
        site.until_services("web", "old", "new")
        assert site.watcher.connected
        site.now_seconds = HOLD_SECONDS
        site.until_services("web", "new")
    assert "store_unreachable" not in events(logs)


def test_everything_is_listed_again_every_so_often() -> None:
    """A watch cannot tell a store that was made anew and has grown past the revision seen last."""
    site = Site()
    site.store.put({**WEB, "/services/old/scheme": "http"})
    with capture_logs() as logs, site.running():
        site.until_services("web", "old")
        site.store.is_deaf = True
        site.store.delete(["/services/old/scheme"])
        site.store.put({"/services/new/scheme": "http"})
        site.now_seconds = 2 * RELIST_SECONDS
        site.until_services("web", "old", "new")
        site.store.is_deaf = False
        site.now_seconds += HOLD_SECONDS
        site.until_services("web", "new")
        # Nothing was lost this time, so a removal counts at once.
        lists = site.store.snapshots
        site.now_seconds += 2 * RELIST_SECONDS
        site.store.wake()
        until(lambda: site.store.snapshots > lists, "it is listed again")
        site.store.delete(["/services/new/scheme"])
        site.until_services("web")
    assert events(logs).count("removals_held_back") == 1


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (StoreUnavailable("no streams through this proxy"), {"store_unreachable"}),
        (HistoryLost("always"), {"watch_history_lost"}),
    ],
)
def test_watch_that_never_works_is_not_tried_without_pause(error: StoreError, logged: set[str]) -> None:
    """A snapshot of everything each time would bring the store down that such a node cannot watch."""
    site = Site()
    site.store.watch_error = error
    over = threading.Event()
    timer = threading.Timer(0.6, over.set)
    timer.start()
    with capture_logs() as logs, site.running():
        until(lambda: over.is_set() and site.store.snapshots > 1, "the time is over")
        assert site.store.snapshots <= 8
    assert set(events(logs)) == logged
    assert events(logs).count("store_unreachable") <= 1


# ---- the last good state ----------------------------------------------------------------------------


def saved(site: Site) -> set[str]:
    assert site.last_good is not None
    return set(site.last_good.load())


def test_last_good_state_is_served_while_the_store_cannot_be_reached(tmp_path: Path) -> None:
    first = Site(tmp_path)
    first.store.put({**WEB, "/services/db/scheme": "tcp"})
    with first.running():
        first.until_services("web", "db")
    assert set(WEB) <= saved(first)

    second = Site(tmp_path)
    second.store.fail(StoreUnavailable("down"))
    with capture_logs() as logs, second.running():
        second.until_services("web", "db")
        assert second.feed.latest is not None
        assert second.feed.latest.value.revision == 0
        assert not second.watcher.read_once
        # The store returns with less: what is missing is held, then dropped.
        second.store.put(WEB)
        second.store.fail(None)
        until(lambda: second.watcher.held > 0, "held")
        assert second.services == {"web", "db"}
        second.now_seconds = HOLD_SECONDS
        second.store.wake()
        second.until_services("web")
    assert events(logs)[:2] == ["store_unreachable", "last_good_restored"]


def test_damaged_last_good_state_is_reported_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "last-good.json").write_text("rubbish")
    site.store.fail(StoreUnavailable("down"))
    with capture_logs() as logs, site.running():
        until(lambda: site.store.snapshots >= 3, "three tries")
        assert site.feed.latest is None
    assert events(logs) == ["store_unreachable", "last_good_unreadable"]


def test_last_good_state_is_never_believed_over_a_store_that_answers(tmp_path: Path) -> None:
    LastGood(tmp_path / "last-good.json").save(
        {"/services/x/scheme": Entry("/services/x/scheme", "tcp", 1, 1)}
    )
    site = Site(tmp_path)
    with site.running():
        site.until_services()


def test_state_is_saved_when_it_is_quiet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.store.put(WEB)
    with site.running():
        site.until_services("web")
        site.now_seconds = SAVE_SECONDS
        until(lambda: saved(site) == set(WEB), "saved at a heartbeat")


def test_state_is_saved_although_it_is_never_quiet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.running():
        number = 0

        def churn() -> bool:
            nonlocal number
            number += 1
            site.now_seconds += MOST_SAVE_SECONDS / 10
            site.store.put({"/services/web/hosts/0": f"192.0.2.1:{number}"})
            return bool(saved(site))

        until(churn, "saved while changes come all the time")


def test_state_is_saved_when_the_store_goes_away(tmp_path: Path) -> None:
    """The agent may be killed before the store returns."""
    site = Site(tmp_path)
    site.store.put(WEB)
    with site.running():
        site.until_services("web")
        assert saved(site) == set()
        site.store.fail(StoreUnavailable("gone"))
        until(lambda: saved(site) == set(WEB), "saved")


def test_failed_save_is_tried_again_without_a_new_change(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the directory should be")
    site = Site(blocked)
    site.store.put(WEB)
    with capture_logs() as logs, site.running():
        site.until_services("web")
        site.now_seconds = MOST_SAVE_SECONDS
        site.store.wake()
        until(lambda: "last_good_not_saved" in events(logs), "the failure is seen", detail=lambda: repr(logs))
        blocked.unlink()
        site.now_seconds = 2 * MOST_SAVE_SECONDS
        site.store.wake()
        until(lambda: saved(site) == set(WEB), "saved")


# ---- raw keys ---------------------------------------------------------------------------------------


def test_raw_keys_are_those_that_can_be_read() -> None:
    fold = KeysFold()
    first = fold.reset(
        Snapshot(1, {"/a": Entry("/a", "1", 1, 1), "/b": Entry("/b", "", 1, 1, error="permission denied")})
    )
    assert first == {"/a": "1"}


def test_raw_keys_follow_changes_and_leave_former_values_alone() -> None:
    site = Site()
    feed: Feed[dict[str, str]] = Feed()
    watcher = Watcher(site.store, "/", KeysFold(), feed, hold_seconds=0)
    stop = threading.Event()
    thread = threading.Thread(target=watcher.run, args=(stop,))
    site.store.put({"/a": "1"})
    thread.start()

    def until_keys(keys: dict[str, str]) -> dict[str, str]:
        value: Callable[[], dict[str, str] | None] = lambda: feed.latest.value if feed.latest else None  # noqa: E731
        until(lambda: value() == keys, repr(keys))
        return value() or {}

    first = until_keys({"/a": "1"})
    site.store.put({"/b": "2"})
    until_keys({"/a": "1", "/b": "2"})
    site.store.delete(["/a"])
    until_keys({"/b": "2"})
    assert first == {"/a": "1"}
    stop.set()
    site.store.put({"/end": ""})
    thread.join(20)
    assert not thread.is_alive()
