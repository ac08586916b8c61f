from typing import Any

import pytest

from discovery.stores.base import Change, Entry
from discovery.stores.etcd2_watch import changes_of, known_of, same_content
from discovery.stores.etcd2_wire import Answer

PREFIX = "/services/"
ENTRIES = {
    key: Entry(key, "1", 3, 3)
    for key in ("/services/web/hosts/0", "/services/web/scheme", "/services/web2/hosts/0")
}


def event(action: str, key: str, **node: Any) -> dict[str, Any]:
    return {"action": action, "node": {"key": key, "createdIndex": 8, "modifiedIndex": 9, **node}}


def gone(*keys: str) -> list[Change]:
    return [Change(key, None) for key in keys]


@pytest.mark.parametrize("action", ["set", "create", "update", "compareAndSwap"])
def test_a_written_key(action: str) -> None:
    key = "/services/web/scheme"
    changed = changes_of(event(action, key, value="tcp", ttl=3), PREFIX, ENTRIES)
    assert changed == [Change(key, Entry(key, "tcp", 8, 9))]


@pytest.mark.parametrize("action", ["delete", "compareAndDelete", "expire"])
def test_a_removed_key(action: str) -> None:
    assert changes_of(event(action, "/services/web/scheme"), PREFIX, ENTRIES) == gone("/services/web/scheme")


@pytest.mark.parametrize("action", ["delete", "expire"])
@pytest.mark.parametrize(
    ("directory", "keys"),
    [
        ("/services/web", ["/services/web/hosts/0", "/services/web/scheme"]),
        ("/services/web/hosts", ["/services/web/hosts/0"]),
        ("/services", sorted(ENTRIES)),
        # etcd's history takes these for directories above the prefix.
        ("/serv", []),
        ("/services/we", []),
    ],
)
def test_a_removed_directory_takes_the_keys_below_it(action: str, directory: str, keys: list[str]) -> None:
    assert changes_of(event(action, directory, dir=True), PREFIX, ENTRIES) == gone(*keys)


def test_a_directory_made_or_given_a_ttl_changes_nothing() -> None:
    assert changes_of(event("set", "/services/api", dir=True), PREFIX, ENTRIES) == []
    assert changes_of(event("update", "/services/web", dir=True, ttl=9), PREFIX, ENTRIES) == []


def test_a_directory_in_the_place_of_a_key_removes_it() -> None:
    made = event("set", "/services/web/scheme", dir=True)
    assert changes_of(made, PREFIX, ENTRIES) == gone("/services/web/scheme")


@pytest.mark.parametrize("key", ["/services", "/servicesx/a", "/services/_a", "/services/web/_x/a"])
def test_keys_outside_the_prefix_and_hidden_ones_are_not_reported(key: str) -> None:
    assert changes_of(event("set", key, value="1"), PREFIX, ENTRIES) == []


def test_a_key_is_not_in_the_place_of_a_directory_of_its_name() -> None:
    answer = Answer(0, 9, "c", event("get", "/services", value="1"))
    assert known_of(answer, PREFIX).entries == {}


def test_only_refreshes_leave_the_content_the_same() -> None:
    key = "/services/web/scheme"
    refreshed = {**ENTRIES, key: Entry(key, "1", 3, 99)}
    assert same_content(ENTRIES, refreshed)
    assert not same_content(ENTRIES, {**ENTRIES, key: Entry(key, "2", 3, 99)})
    assert not same_content(ENTRIES, {**ENTRIES, key: Entry(key, "1", 99, 99)})
    assert not same_content(ENTRIES, {key: ENTRIES[key]})
    assert not same_content({key: ENTRIES[key]}, ENTRIES)
