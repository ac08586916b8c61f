"""The last entries on disk."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from discovery.lastgood import LastGood
from discovery.stores.base import Entry

ENTRIES = {
    "/services/web/hosts/0": Entry("/services/web/hosts/0", "192.0.2.1:80", 3, 5),
    "/services/web/attributes/0": Entry("/services/web/attributes/0", '{"image": "é\n\u2028"}', 4, 4),
}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state" / "private" / "last-good.json"
    assert LastGood(path).save(ENTRIES)
    assert LastGood(path).load() == ENTRIES
    assert path.stat().st_mode & 0o777 == 0o600
    LastGood(path).save({})
    assert LastGood(path).load() == {}


def test_nothing_saved_is_nothing_and_nothing_to_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert LastGood(tmp_path / "none.json").load() == {}
    assert logs == []


def test_values_that_could_not_be_read_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "last-good.json"
    LastGood(path).save({**ENTRIES, "/x": Entry("/x", "", 1, 1, error="permission denied")})
    assert LastGood(path).load() == ENTRIES


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), st.text()))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("lastgood") / "last-good.json"
    entries = {key: Entry(key, value, 1, 2) for key, value in values.items()}
    # A lone surrogate is what a JSON escape may have brought in.
    entries["\ud800"] = Entry("\ud800", "\udfff", 1, 2)
    LastGood(path).save(entries)
    assert LastGood(path).load() == entries


def file_of(entries: object) -> str:
    return json.dumps({"format": 1, "entries": entries})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        file_of([["/a", "x", 1, 2]])[:-5],
        "[]",
        "1",
        "null",
        "{}",
        '"text"',
        "[" * 100_000,
        '{"format": 1}',
        '{"format": 2, "entries": []}',
        file_of(None),
        file_of({"abcd": 1}),
        file_of(["abcd"]),
        file_of([["/a", "x", 1]]),
        file_of([["/a", "x", 1, 2, 3]]),
        file_of([["/a", None, 1, 2]]),
        file_of([[7, "x", 1, 2]]),
        file_of([["/a", "x", "1", 2]]),
        file_of([["/a", "x", 1, None]]),
        file_of([["/a", "x", 1.5, 2]]),
        file_of([["/a", "x", True, 2]]),
        file_of([[["/a"], "x", 1, 2]]),
    ],
)
def test_damaged_file_counts_as_none_and_is_logged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "last-good.json"
    path.write_text(text)
    with capture_logs() as logs:
        assert LastGood(path).load() == {}
    assert [log["event"] for log in logs] == ["last_good_unreadable"]


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"\x00" * 100])
def test_bytes_that_are_no_text_count_as_none(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "last-good.json"
    path.write_bytes(damage)
    assert LastGood(path).load() == {}


def test_directory_in_its_place_counts_as_none(tmp_path: Path) -> None:
    assert LastGood(tmp_path).load() == {}


def test_failure_to_save_is_logged_once_and_leaves_the_old_file(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    last_good = LastGood(blocked / "last-good.json")
    with capture_logs() as logs:
        assert not last_good.save(ENTRIES)
        assert not last_good.save(ENTRIES)
        blocked.unlink()
        assert last_good.save(ENTRIES)
        os.rename(tmp_path / "blocked", tmp_path / "moved")  # noqa: PTH104
        blocked.write_text("again")
        assert not last_good.save({})
    assert [log["event"] for log in logs] == ["last_good_not_saved"] * 2
    assert LastGood(tmp_path / "moved" / "last-good.json").load() == ENTRIES
