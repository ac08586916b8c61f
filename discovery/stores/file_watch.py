"""The thread that keeps a file store's mirror up to date while someone watches it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import structlog
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from discovery.errors import StoreError, StoreUnavailable
from discovery.stores.file_mirror import ROOT, Mirror
from discovery.stores.file_tree import SESSIONS, Tree

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
"""The directory itself is looked at this often: it may be gone, or another one be mounted there."""

GATHER_SECONDS = 0.01
"""After an event, others are waited for: a shell empties a file before it writes, an editor renames twice."""

LEAST_RESCAN_SECONDS, MOST_RESCAN_SECONDS, RESCAN_SHARE = 5.0, 30.0, 0.01
"""Everything is looked at again within these bounds, at about this share of one CPU, for no event may have
come: the kernel's queue or its watches ran out, or the file system is written from another machine."""

UNWATCHED_RESCAN_SECONDS = 1.0
"""Instead, while there are no events at all."""

_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


class TreeWatch:
    """Runs while at least one ``running()`` is entered. ``error`` is why the mirror is not up to date."""

    def __init__(self, tree: Tree, mirror: Mirror, remove_expired: Callable[[], None]) -> None:
        self._tree = tree
        self._mirror = mirror
        self._remove_expired = remove_expired
        self._users = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._dirty_lock = threading.Lock()
        self._dirty: set[str] = set()
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self._failed: str | None = None
        self._rescan_due = 0.0
        self._error: StoreError | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Keep the mirror up to date meanwhile."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._start()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._stop()

    def check(self) -> None:
        """Raises why the mirror cannot be kept up to date, if so."""
        if self._error is not None:
            raise type(self._error)(str(self._error)) from self._error
        if self._thread is None or not self._thread.is_alive():
            raise StoreUnavailable(f"{self._tree.root}: the thread that watches it has ended")

    def _start(self) -> None:
        self._stopping.clear()
        self._error = None
        self._rescan_due = 0.0
        self._thread = threading.Thread(target=self._run, name="file-store", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wait()
                if not self._stopping.is_set():
                    self._try_to_look()
        finally:
            self._disarm()
            self._mirror.history.wake()

    def _try_to_look(self) -> None:
        before = self._error
        try:
            self._look()
        except StoreError as error:
            self._error = error
            self._disarm()
            self._mirror.history.wake()
            if before is None:
                log.warning("file_store_lost", path=self._tree.root, error=str(error))
            return
        self._error = None
        if before is not None:
            log.info("file_store_back", path=self._tree.root)

    def _wait(self) -> None:
        due_seconds = self._mirror.due_seconds()
        rescan_seconds = self._rescan_due - time.monotonic()
        wait_seconds = min(TICK_SECONDS, rescan_seconds, TICK_SECONDS if due_seconds is None else due_seconds)
        if self._error is not None:
            wait_seconds = TICK_SECONDS
        if wait_seconds > 0 and self._wake.wait(wait_seconds):
            # Cleared before looking, so that what comes meanwhile sets it again.
            self._wake.clear()
            self._stopping.wait(GATHER_SECONDS)

    def _look(self) -> None:
        self._arm()
        with self._dirty_lock:
            dirty, self._dirty = self._dirty, set()
        began = time.monotonic()
        rescan = began >= self._rescan_due
        self._mirror.refresh([ROOT] if rescan else dirty)
        self._remove_expired()
        if rescan:
            took_seconds = time.monotonic() - began
            wait_seconds = min(max(took_seconds / RESCAN_SHARE, LEAST_RESCAN_SECONDS), MOST_RESCAN_SECONDS)
            watched = self._observer is not None
            self._rescan_due = time.monotonic() + (wait_seconds if watched else UNWATCHED_RESCAN_SECONDS)

    # -- events

    def _arm(self) -> None:
        """Have events of the directory that is there now; a look at everything follows a new watch."""
        status = self._tree.check()
        identity = status.st_dev, status.st_ino
        if self._watched == identity:
            return
        self._disarm()
        self._rescan_due = 0.0
        observer: BaseObserver | None = None
        try:
            observer = Observer()
            handler = _Handler(self._tree.root, self._tell)
            observer.schedule(handler, self._tree.root, recursive=True, event_filter=_EVENTS)
            observer.start()
        except OSError as error:
            # Mostly a limit of inotify; looking every second goes on without it.
            if observer is not None:
                observer.stop()
            if self._failed != str(error):
                log.warning("file_store_unwatched", path=self._tree.root, error=str(error))
            self._failed = str(error)
            return
        self._observer, self._watched, self._failed = observer, identity, None

    def _disarm(self) -> None:
        observer, self._observer, self._watched = self._observer, None, None
        if observer is not None:
            observer.stop()
            observer.join()

    def _tell(self, key: str | None) -> None:
        if key is not None:
            with self._dirty_lock:
                self._dirty.add(key)
        self._wake.set()


class _Handler(FileSystemEventHandler):
    """Tells the key that an event is about; None for a lease, for all leases are looked at each time."""

    def __init__(self, root: str, tell: Callable[[str | None], None]) -> None:
        self._root = root
        self._tell = tell

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called by watchdog, in its own thread."""
        for name in (event.src_path, event.dest_path):
            path = os.fsdecode(name)
            if not path.startswith(self._root):
                continue
            key = path[len(self._root) :]
            if key.startswith(f"/{SESSIONS}/") and "/." not in key[1:]:
                self._tell(None)
            elif "/." not in key:
                self._tell(key)
