"""List once, then follow the changes: the one way in which the store is read continuously."""

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol, cast

import structlog

from discovery.errors import HistoryLost, StoreError
from discovery.retry import Backoff
from discovery.stores.base import Changes, Snapshot, Store

log = structlog.get_logger(__name__)


class Listing(NamedTuple):
    """Everything under the prefix, asked for at ``asked_at`` seconds of the caller's clock.

    ``after_outage`` when the store was out of reach since the last word from it.
    """

    snapshot: Snapshot
    asked_at: float
    after_outage: bool


class Reader(Protocol):
    """Takes over what a prefix of the store holds, and each change to it. Called from one thread."""

    def begin(self, listing: Listing) -> None:
        """Everything, at the beginning and whenever it had to be listed again."""
        ...

    def follow(self, changes: Changes) -> None:
        """The next changes; none at all as a heartbeat."""
        ...

    def lose(self, error: StoreError) -> None:
        """The store is out of reach; ``begin`` comes next, whenever it is back."""
        ...


def list_and_watch(
    store: Store,
    prefix: str,
    reader: Reader,
    stop: threading.Event,
    *,
    relist_seconds: float = math.inf,
    patience_seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Keep ``reader`` current until ``stop``; errors of the store are waited out, with back-off.

    Everything is listed again when history was lost, after an outage, and about every ``relist_seconds``.
    ``patience_seconds`` is as in ``Store.watch``.
    """
    backoff = Backoff(first_seconds=0.2, most_seconds=5)
    after_outage = False
    while not stop.is_set():
        try:
            asked_at = clock()
            snapshot = store.snapshot(prefix)
            reader.begin(Listing(snapshot, asked_at, after_outage))
            after_outage = False
            relist_due = asked_at + relist_seconds * random.uniform(0.8, 1.2)
            # Every watch is a generator; the protocol promises only what readers need, an iterator.
            watch = cast("Generator[Changes]", store.watch(prefix, snapshot.revision, patience_seconds))
            with contextlib.closing(watch):
                for changes in watch:
                    if stop.is_set():
                        return
                    # Only a watch that tells something is a recovery: one that fails each time is not
                    # tried without pause because a snapshot came before it.
                    backoff.reset()
                    reader.follow(changes)
                    if clock() >= relist_due:
                        break
        except HistoryLost as error:
            log.info("watch_history_lost", store=store.url, reason=str(error))
            stop.wait(backoff.next_seconds())
        except StoreError as error:
            after_outage = True
            reader.lose(error)
            stop.wait(backoff.next_seconds())
