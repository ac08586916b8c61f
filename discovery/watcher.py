"""Follows one prefix of the store and publishes what it makes of it: store → feed.

List, then follow the changes; list again every so often, for what no change tells. While the store is out
of reach nothing is published, so that every reader keeps what it has.
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import structlog

from discovery.errors import StoreError
from discovery.feed import Feed
from discovery.lastgood import LastGood
from discovery.listwatch import Listing, list_and_watch
from discovery.outage import OutageGuard
from discovery.stores.base import Changes, Entry, Snapshot, Store

log = structlog.get_logger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

RELIST_SECONDS = 300.0
"""Everything is listed again about this often: a store that was made anew, or restored from a backup, and has
since grown past the revision seen last cannot be told from the former one by watching it."""

SAVE_SECONDS = 5.0
MOST_SAVE_SECONDS = 60.0
"""When it is never quiet: shell loops that repeat their keys are changes too."""


class Fold(Protocol[T_co]):
    """Makes a value of a snapshot, and the next value of each batch of changes."""

    def reset(self, snapshot: Snapshot) -> T_co:
        """The value of a whole snapshot."""
        ...

    def apply(self, changes: Changes) -> T_co:
        """The value after these changes."""
        ...


class KeysFold:
    """The raw values by key, for generic templates."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def reset(self, snapshot: Snapshot) -> dict[str, str]:
        """All values of the snapshot."""
        self._values = {key: entry.value for key, entry in snapshot.entries.items() if entry.error is None}
        return self._values

    def apply(self, changes: Changes) -> dict[str, str]:
        """A new mapping; the former one is left as it was."""
        values = dict(self._values)
        for change in changes.changes:
            if change.entry is None or change.entry.error is not None:
                values.pop(change.key, None)
            else:
                values[change.key] = change.entry.value
        self._values = values
        return values


class Watcher(Generic[T]):
    """One thread calls ``run``; ``connected`` and ``read_once`` may be read from any."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        fold: Fold[T],
        feed: Feed[T],
        *,
        hold_seconds: float,
        last_good: LastGood | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives growing seconds; by it removals are released and the last good state is saved."""
        self.connected = False
        self.read_once = False
        self._store = store
        self._prefix = prefix
        self._fold = fold
        self._feed = feed
        self._guard = OutageGuard(hold_seconds)
        self._last_good = last_good
        self._clock = clock
        self._unsaved_since: float | None = None
        # What was logged last; None before anything was.
        self._reported_connected: bool | None = None

    @property
    def held(self) -> int:
        """How many removals are held back after an outage."""
        return self._guard.held

    def run(self, stop: threading.Event) -> None:
        """Follow the prefix until ``stop``; store errors are waited out."""
        list_and_watch(
            self._store, self._prefix, self, stop, relist_seconds=RELIST_SECONDS, clock=self._clock
        )
        self._save()

    # -- a Reader

    def begin(self, listing: Listing) -> None:
        """See ``listwatch.Reader``."""
        self.connected = self.read_once = True
        # What vanished without a word may be the loss of a store that was made anew, as after an outage.
        vanished = self._guard.entries.keys() - listing.snapshot.entries.keys()
        believed = self._guard.reset(
            listing.snapshot,
            after_outage=listing.after_outage or bool(vanished),
            now_seconds=self._clock(),
        )
        if self._guard.held:
            reason = "the store was out of reach" if listing.after_outage else "they vanished without a word"
            log.warning("removals_held_back", keys=self._guard.held, reason=reason)
        self._unsaved()
        self._feed.publish(self._fold.reset(believed))

    def follow(self, changes: Changes) -> None:
        """See ``listwatch.Reader``."""
        self._report_connected()
        believed = self._guard.apply(changes, now_seconds=self._clock())
        if believed.changes:
            self._feed.publish(self._fold.apply(believed))
            self._unsaved()
        self._save_if_due(quiet=not believed.changes)

    def lose(self, error: StoreError) -> None:
        """See ``listwatch.Reader``."""
        self.connected = False
        if self._reported_connected is False:
            return
        log.error("store_unreachable", store=self._store.url, error=str(error), serving="last good state")
        self._reported_connected = False
        if self._feed.latest is None and self._last_good is not None:
            self._restore(self._last_good.load())
        # There is time now, and this is what a restart before the store returns will need.
        self._save()

    # -- what is told and kept

    def _report_connected(self) -> None:
        if not self._reported_connected:
            log.info("store_connected", store=self._store.url, keys=len(self._guard.entries))
        self._reported_connected = True

    def _restore(self, entries: dict[str, Entry]) -> None:
        if entries:
            log.warning("last_good_restored", keys=len(entries))
            self._guard.restore(entries)
            # Revision 0: no revision of the store that is out of reach can be vouched for.
            self._feed.publish(self._fold.reset(Snapshot(0, entries)))

    def _unsaved(self) -> None:
        if self._unsaved_since is None:
            self._unsaved_since = self._clock()

    def _save_if_due(self, quiet: bool) -> None:
        if self._unsaved_since is None:
            return
        # Sooner when it is quiet, for a change must not wait for the disk.
        wait_seconds = SAVE_SECONDS if quiet else MOST_SAVE_SECONDS
        if self._clock() - self._unsaved_since >= wait_seconds:
            self._save()

    def _save(self) -> None:
        if self._last_good is None or self._unsaved_since is None:
            return
        saved = self._last_good.save(self._guard.entries)
        self._unsaved_since = None if saved else self._clock()
