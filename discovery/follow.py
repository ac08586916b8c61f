"""Keeps something running as the newest Catalog says: HAProxy, the DNS zone, a file made from a template."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from discovery.catalog import Catalog, Problem
from discovery.errors import DiscoveryError, Postponed
from discovery.feed import Feed, Published
from discovery.retry import Backoff

log = structlog.get_logger(__name__)

QUIET_SECONDS = 0.05
MOST_SECONDS = 0.5
RECHECK_SECONDS = 5.0
POLL_SECONDS = 0.1
"""A poke, a due retry and the stop event are seen within this time; a new catalog at once."""


class Applier(Protocol):
    """Makes one thing be as a Catalog says."""

    name: str

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        """Return only when it is running, and then what of the catalog could not be, on this node.

        Raises Postponed when a part of it waits for its time, a DiscoveryError when it could not be made to
        run; the last good state then still does. Is called again with the same catalog to retry, to recheck
        problems, and when its own ground changed, and costs next to nothing when there is nothing to do.
        """
        ...


@dataclass(frozen=True, slots=True)
class FollowerStatus:
    """How far a follower is. ``applied_revision`` is the one confirmed running, None before the first.

    ``error`` is why the last attempt failed; ``waits`` is why a part of it waits for its time.
    """

    name: str
    applied_revision: int | None = None
    problems: tuple[Problem, ...] = ()
    error: str | None = None
    waits: str | None = None


class Follower:
    """Applies the newest catalog, gathers bursts, retries failures. One thread calls ``run``."""

    def __init__(
        self,
        feed: Feed[Catalog],
        applier: Applier,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        most_seconds: float = MOST_SECONDS,
        recheck_seconds: float = RECHECK_SECONDS,
        on_attempt: Callable[[FollowerStatus, float], None] = lambda _status, _seconds: None,
    ) -> None:
        self.status = FollowerStatus(applier.name)
        self._feed = feed
        self._applier = applier
        self._quiet_seconds = quiet_seconds
        self._most_seconds = most_seconds
        self._recheck_seconds = recheck_seconds
        self._on_attempt = on_attempt
        self._poked = threading.Event()
        self._backoff = Backoff(first_seconds=0.5, most_seconds=30)

    def poke(self) -> None:
        """Apply again soon although the catalog is the same: the ground changed (a template, a process)."""
        self._poked.set()

    def run(self, stop: threading.Event) -> None:
        """Follow until ``stop``."""
        current: Published[Catalog] | None = None
        applied: Catalog | None = None
        due: float | None = None
        while not stop.is_set():
            newer = self._feed.wait(current.sequence if current else 0, timeout_seconds=POLL_SECONDS)
            if newer is not None:
                current = self._feed.gather(newer, self._quiet_seconds, self._most_seconds)
                if stop.is_set():
                    # What is about to be stopped is not changed once more.
                    return
            again = self._poked.is_set() or (due is not None and time.monotonic() >= due)
            if current is None or (newer is None and not again):
                continue
            if not again and applied is not None and applied.services is current.value.services:
                # Only the store's revision moved on: what runs is what this revision asks for too.
                self.status = replace(self.status, applied_revision=current.value.revision)
                continue
            self._poked.clear()
            is_applied, wait_seconds = self._apply(current.value)
            applied = current.value if is_applied else None
            due = time.monotonic() + wait_seconds if wait_seconds else None

    def _apply(self, catalog: Catalog) -> tuple[bool, float | None]:
        """Apply once; whether it is, and the seconds after which to try again, None when there is no need."""
        began = time.monotonic()
        before = self.status
        is_applied = False
        wait_seconds: float | None
        try:
            problems = self._applier.apply(catalog)
        except Postponed as error:
            log.debug("apply_postponed", applier=before.name, reason=str(error))
            self.status = replace(before, waits=str(error))
            wait_seconds = error.seconds
        except DiscoveryError as error:
            self.status = replace(before, error=str(error), waits=None)
            if before.error != str(error):
                log.error("apply_failed", applier=before.name, revision=catalog.revision, error=str(error))
            wait_seconds = self._backoff.next_seconds()
        else:
            is_applied = True
            self._backoff.reset()
            self.status = FollowerStatus(before.name, catalog.revision, problems)
            if before.error is not None:
                log.info("apply_recovered", applier=before.name, revision=catalog.revision)
            wait_seconds = self._recheck_seconds if problems else None
        self._on_attempt(self.status, time.monotonic() - began)
        return is_applied, wait_seconds
