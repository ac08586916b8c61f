"""PathWatch on a real file system: each way in which people and tools change files is noticed."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from watchdog.events import DirModifiedEvent, FileClosedNoWriteEvent, FileModifiedEvent, FileOpenedEvent

from discovery.pathwatch import PathWatch, _Handler

PATIENCE_SECONDS = 30


@contextmanager
def watching(*paths: Path) -> Iterator[threading.Event]:
    changed = threading.Event()
    watch = PathWatch(paths, changed.set)
    watch.start()
    try:
        yield changed
    finally:
        watch.stop()


def in_place(directory: Path) -> None:
    (directory / "a.j2").write_text("new")


def by_rename(directory: Path) -> None:
    (directory / ".a.j2.swp").write_text("new")
    (directory / ".a.j2.swp").rename(directory / "a.j2")


def new_file(directory: Path) -> None:
    (directory / "b.j2").write_text("new")


def removed(directory: Path) -> None:
    (directory / "a.j2").unlink()


def below(directory: Path) -> None:
    (directory / "sub" / "c.j2").write_text("new")


def replaced_directory(directory: Path) -> None:
    other = directory.with_name("other")
    shutil.copytree(directory, other)
    (other / "a.j2").write_text("new")
    directory.rename(directory.with_name("old"))
    other.rename(directory)


@pytest.mark.parametrize("change", [in_place, by_rename, new_file, removed, below, replaced_directory])
def test_notices_a_change_in_a_directory(tmp_path: Path, change: Callable[[Path], None]) -> None:
    directory = tmp_path / "templates"
    (directory / "sub").mkdir(parents=True)
    (directory / "a.j2").write_text("old")
    with watching(directory) as changed:
        change(directory)
        assert changed.wait(PATIENCE_SECONDS)
        # And it is still watched afterwards, also when it is another directory by now.
        changed.clear()
        (directory / "later.j2").write_text("x")
        assert changed.wait(PATIENCE_SECONDS)


def test_notices_a_directory_that_did_not_exist(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "discovery" / "templates"
    with watching(directory) as changed:
        directory.mkdir(parents=True)
        (directory / "a.j2").write_text("new")
        assert changed.wait(PATIENCE_SECONDS)
        changed.clear()
        (directory / "a.j2").write_text("newer")
        assert changed.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("exists", [True, False])
def test_notices_a_single_file(tmp_path: Path, exists: bool) -> None:
    file = tmp_path / "motd.j2"
    if exists:
        file.write_text("old")
    with watching(file) as changed:
        by = tmp_path / "motd.j2.new"
        by.write_text("new")
        by.replace(file)
        assert changed.wait(PATIENCE_SECONDS)


def test_reading_and_neighbours_are_no_change(tmp_path: Path) -> None:
    told: list[None] = []
    handler = _Handler((tmp_path / "templates",), lambda: told.append(None))
    inside, beside = str(tmp_path / "templates" / "a.j2"), str(tmp_path / "templates-of-others")
    for event in (FileOpenedEvent(inside), FileClosedNoWriteEvent(inside), FileModifiedEvent(beside)):
        handler.dispatch(event)
    assert told == []
    handler.dispatch(FileModifiedEvent(inside))
    assert told == [None]


def test_a_symlink_switched_to_another_directory_is_noticed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.j2").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("one")
    with watching(link) as changed:
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(link)
        assert changed.wait(PATIENCE_SECONDS)
        changed.clear()
        (tmp_path / "two" / "a.j2").write_text("three")
        assert changed.wait(PATIENCE_SECONDS)


def test_what_comes_and_goes_beside_a_file_says_nothing_of_it(tmp_path: Path) -> None:
    """A template whose candidate is checked beside it must not be rendered for that, without end."""
    template = tmp_path / "a.j2"
    template.write_text("old")
    handler_calls: list[str] = []
    handler = _Handler((template,), lambda: handler_calls.append("told"))
    handler.dispatch(FileModifiedEvent(str(tmp_path / ".candidate")))
    handler.dispatch(DirModifiedEvent(str(tmp_path)))
    assert handler_calls == []
    handler.dispatch(FileModifiedEvent(str(template)))
    assert handler_calls == ["told"]
