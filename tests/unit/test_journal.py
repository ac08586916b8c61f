"""What a registrator noted down before it died, and what may be believed of it."""

import json
import os
import time
from pathlib import Path

from discovery.journal import SPARE_LINES, VALID_SECONDS, Journal

H = "/services/web/hosts/n1:web:80"
A = "/services/web/attributes/n1:web:80"


def opened(path: Path, store: str = "etcd3://h") -> Journal:
    journal = Journal(path, store)
    journal.open()
    return journal


def test_what_was_noted_is_known_in_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "journal"
    first = opened(path)
    first.note({H: "a:1", A: "{}"})
    first.note({H: "a:2"})
    # Killed here: either may be in the store.
    first.close()
    second = opened(path)
    assert second.written == {H: ("a:1", "a:2"), A: ("{}",)}
    assert second.services == {"web"}
    second.note({H: "a:3"})
    second.settle({H: "a:3"})
    second.forget([A, "/services/web/scheme"])
    assert second.written == {H: ("a:3",)}
    second.close()
    assert A not in opened(path).written
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_proves_nothing_is_forgotten(tmp_path: Path) -> None:
    def written(change: str) -> bool:
        path = tmp_path / change
        first = opened(path)
        first.note({H: "a:1"})
        first.close()
        head, *rest = path.read_text().splitlines()
        if change == "boot":
            path.write_text("\n".join([json.dumps({**json.loads(head), "boot": "another"}), *rest]))
        elif change == "age":
            old = time.time() - VALID_SECONDS - 1
            os.utime(path, (old, old))
        elif change == "future":
            os.utime(path, (time.time() + 3600,) * 2)
        elif change == "head":
            path.write_text("\n".join(["{", *rest]))
        elif change == "torn":
            path.write_text("\n".join([head, *rest, '["/services/we']))
        elif change == "list":
            path.write_text("\n".join([head, *rest, "[1, 2]", "{}"]))
        return bool(opened(path, "etcd3://other" if change == "store" else "etcd3://h").written)

    assert [change for change in ("none", "torn", "list") if not written(change)] == []
    assert [change for change in ("boot", "age", "future", "head", "store") if written(change)] == []


def test_one_state_directory_has_one_registrator(tmp_path: Path) -> None:
    first = opened(tmp_path / "journal")
    first.note({H: "a:1"})
    second = opened(tmp_path / "journal")
    assert second.written == {}
    second.note({A: "{}"})
    first.close()
    assert opened(tmp_path / "journal").written == {H: ("a:1",)}


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = opened(path)
    for number in range(3 * SPARE_LINES):
        journal.note({H: f"a:{number}"})
        journal.settle({H: f"a:{number}"})
    assert len(path.read_text().splitlines()) <= SPARE_LINES + 10
    journal.close()
    assert f"a:{3 * SPARE_LINES - 1}" in opened(path).written[H]


def test_without_a_directory_it_is_for_this_life(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for journal in (Journal(), opened(tmp_path / "file" / "journal")):
        journal.open()
        journal.note({H: "a:1"})
        assert journal.written == {H: ("a:1",)}
        journal.keep()
        journal.close()
