"""Watches files and directories that people edit, and says when to look again."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog
from watchdog.events import (
    EVENT_TYPE_CLOSED_NO_WRITE,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_OPENED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
"""The paths are looked at this often without an event: for symlinks, network mounts, lost events."""

ARM_TRIES = 5

State = frozenset[tuple[str, int, int, int, int]]


class PathWatch:
    """Calls ``on_change``, in a thread of its own, after something at or below one of ``paths`` changed.

    A path may be a file or a directory, may not exist yet, and may be removed or replaced. The call says
    only "look again": several changes may make one call, and a call may find nothing new. ``on_change``
    must be brief and may raise nothing.
    """

    def __init__(self, paths: Iterable[Path], on_change: Callable[[], None]) -> None:
        self._paths = tuple(path.absolute() for path in paths)
        self._on_change = on_change
        self._event = threading.Event()
        self._stopping = False
        self._observer: BaseObserver = Observer()
        self._places: frozenset[tuple[Path, bool, int, int]] = frozenset()
        self._failed: str | None = None
        self._state: State = frozenset()
        self._thread = threading.Thread(target=self._run, name="pathwatch", daemon=True)

    def start(self) -> None:
        """Begin; a change made after this returns is noticed."""
        self._observer.start()
        self._arm()
        self._state = self._look()
        self._thread.start()

    def stop(self) -> None:
        """End both threads; no call comes after this returns. Not from within ``on_change``."""
        if self._thread.ident is None:
            return
        self._stopping = True
        self._event.set()
        self._thread.join()
        self._observer.stop()
        self._observer.join()

    def _run(self) -> None:
        while True:
            told = self._event.wait(LOOK_SECONDS)
            if self._stopping:
                return
            self._event.clear()
            # A directory that came into being is armed before it is looked at, so nothing falls between.
            self._arm()
            state = self._look()
            if told or state != self._state:
                self._state = state
                self._on_change()

    def _arm(self) -> None:
        """Watch the places whose events concern the paths, as they are now."""
        # What changes between looking and watching has no event, so it is looked at again, within reason.
        failure = None
        for _ in range(ARM_TRIES):
            places = frozenset(self._wanted_places())
            if places == self._places:
                return
            self._observer.unschedule_all()
            self._places = frozenset()
            # inotify tells names without symlinks: where a path leads now, and the link that may be switched.
            real = [path.resolve() for path in self._paths]
            links = [path.parent.resolve() / path.name for path in self._paths]
            handler = _Handler((*self._paths, *real, *links), self._event.set)
            try:
                for place, recursive, *_identity in places:
                    self._observer.schedule(handler, str(place), recursive=recursive)
                self._places, self._failed = places, None
            except OSError as error:
                # It went away just now, or the limit of inotify watches is reached: then looking goes on.
                failure = str(error)
        if not self._places and self._failed != failure:
            log.warning("path_watch_failed", error=failure, looked_at_every_seconds=LOOK_SECONDS)
            self._failed = failure

    def _wanted_places(self) -> Iterator[tuple[Path, bool, int, int]]:
        """Directory, whether all below it counts, and its identity, for a replaced one is watched anew."""
        for path in self._paths:
            candidates = [(path, True)] if path.is_dir() else []
            # The parent tells of the path's own removal, replacement and coming into being.
            parent = next((each for each in path.parents if each.is_dir()), None)
            if parent is not None:
                candidates.append((parent, False))
            for place, recursive in candidates:
                with contextlib.suppress(OSError):
                    status = place.stat()
                    yield place.resolve(), recursive, status.st_dev, status.st_ino

    def _look(self) -> State:
        """What the paths are: name, identity, size and time of every file at or below them."""
        state = set()
        for path in self._paths:
            for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
                with contextlib.suppress(OSError):
                    status = each.stat()
                    state.add((str(each), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return frozenset(state)


class _Handler(FileSystemEventHandler):
    """Tells of events at, below or above one of the paths; reading is none."""

    def __init__(self, paths: tuple[Path, ...], tell: Callable[[], None]) -> None:
        self._paths = paths
        self._tell = tell

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in (EVENT_TYPE_OPENED, EVENT_TYPE_CLOSED_NO_WRITE):
            return
        names: tuple[str | bytes, ...] = (event.src_path, event.dest_path)
        if any(name and self._concerns(Path(os.fsdecode(name)), event.event_type) for name in names):
            self._tell()

    def _concerns(self, place: Path, kind: str) -> bool:
        for path in self._paths:
            if place.is_relative_to(path):
                return True
            # A directory above is "modified" by every file that comes and goes in it, such as what is
            # rendered beside its template.
            if path.is_relative_to(place) and kind != EVENT_TYPE_MODIFIED:
                return True
        return False
