"""What is the memory and file stores' own: their URLs, a clock that is passed in, the bounded history."""

from contextlib import closing
from pathlib import Path

import pytest

from discovery.errors import ConfigError, HistoryLost, SessionLost
from discovery.stores import open_store
from discovery.stores.base import Change, Entry
from discovery.stores.history import History
from discovery.stores.memory import Memory, MemoryStore


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        ("file:", "file:///DIR"),
        ("file://", "file:///DIR"),
        ("file:///", "file:///DIR"),
        ("file://relative/dir", "file:///DIR"),
        ("file:///dir?x=1", "file:///DIR"),
        ("file:///dir%00", "file:///DIR"),
        ("file:relative/dir", f"file://{Path.cwd()}/relative/dir"),
        ("memory://host", "memory:NAME"),
        ("memory:a/b", "memory:NAME"),
    ],
)
def test_a_malformed_url_is_a_wrong_setting_with_its_mend(url: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.setting == "store.url"
    assert mend in caught.value.mend


def test_a_directory_may_be_percent_encoded(tmp_path: Path) -> None:
    with closing(open_store(f"file://{tmp_path}/a%20b%3F")) as store:
        store.put({"/a": "1"})
    assert (tmp_path / "a b?" / "a").read_text() == "1\n"


def test_opening_touches_nothing(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/store").close()
    assert list(tmp_path.iterdir()) == []


def test_a_named_memory_store_is_shared_and_a_nameless_one_is_not() -> None:
    open_store("memory:unit-shared").put({"/a": "1"})
    assert set(open_store("memory:unit-shared").snapshot("/").entries) == {"/a"}
    open_store("memory:").put({"/a": "1"})
    assert open_store("memory:").snapshot("/").entries == {}


def test_memory_expires_by_the_clock_it_is_given() -> None:
    now = 100.0
    store = MemoryStore(Memory(clock=lambda: now))
    session = store.session(30)
    session.put({"/a": "1"})
    now += 29
    session.keepalive()
    now += 29.9
    assert set(store.snapshot("/").entries) == {"/a"}
    watch = store.watch("/", store.snapshot("/").revision)
    now += 0.2
    assert next(watch).changes == (Change("/a", None),)
    with pytest.raises(SessionLost):
        session.close()


def test_history_is_bounded_and_says_so() -> None:
    history = History(revision=10, limit=5)
    for revision in range(11, 31):
        history.append(revision, [Change(f"/{revision}", Entry(f"/{revision}", "", revision, revision))])

    def after(revision: int) -> list[str]:
        return [change.key for change in next(history.follow("/", revision, lambda: None)).changes]

    assert after(28) == ["/29", "/30"]
    assert after(25) == ["/26", "/27", "/28", "/29", "/30"]
    for unknown in (5, 10, 23, 31):
        with pytest.raises(HistoryLost):
            after(unknown)


def test_a_watch_that_is_too_slow_loses_its_history() -> None:
    history = History(revision=0, limit=5)
    watch = history.follow("/", 0, lambda: None)
    history.append(1, [Change("/a", None)])
    assert next(watch).revision == 1
    for revision in range(2, 20):
        history.append(revision, [Change("/a", None)])
    with pytest.raises(HistoryLost):
        next(watch)
