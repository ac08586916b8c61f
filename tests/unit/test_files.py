"""Files replaced as a whole."""

import os
import threading
from pathlib import Path

import pytest

from discovery import files
from discovery.errors import ApplyError


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize(("content", "data"), [("é\n", b"\xc3\xa9\n"), (b"\xff\x00", b"\xff\x00"), ("", b"")])
def test_content_is_written_as_it_is(tmp_path: Path, content: str | bytes, data: bytes) -> None:
    path = tmp_path / "file"
    files.replace(path, content)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_mode_is_exact_whatever_the_umask_and_the_old_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o077)
    try:
        files.replace(path, "x")
        assert mode_of(path) == 0o644
        files.replace(path, "x", mode=0o600)
        assert mode_of(path) == 0o600
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_owner_and_group_by_number_and_by_name_with_the_mode_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    # A change of owner takes the set-id bits away; they must be set after it.
    files.replace(path, "x", mode=0o6750, owner=1234, group=2345)
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (1234, 2345, 0o6750)
    files.replace(path, "x", owner="daemon", group="daemon")
    assert (path.owner(), path.group()) == ("daemon", "daemon")


def test_reader_sees_the_old_or_the_new_file_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [character * 100_000 for character in "ab"]
    path.write_text(contents[0])
    done = threading.Event()
    seen = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(100):
        files.replace(path, contents[number % 2])
    done.set()
    thread.join()
    assert seen <= set(contents)


def assert_refused(path: Path, content: str | bytes = "new", owner: str | None = None) -> None:
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    with pytest.raises(ApplyError, match="cannot be written"):
        files.replace(path, content, owner=owner)
    if before is not None:
        assert sorted(path.parent.iterdir()) == before, "a temporary file is left"


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    assert_refused(path, owner="no-such-user")
    # A text that no UTF-8 file can hold; JSON escapes bring such texts in.
    assert_refused(path, "\ud800")
    assert path.read_text() == "old"


def test_place_that_cannot_be_written_is_an_apply_error(tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing" / "file")
    assert_refused(tmp_path / ("x" * 300))
    assert_refused(tmp_path / "nul\0byte")
    (tmp_path / "directory").mkdir()
    assert_refused(tmp_path / "directory")
