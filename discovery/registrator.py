"""The registrator: keeps in the store what a source says runs here, under one session.

Three threads, one direction. One asks the source and leaves its newest answer; one mirrors the store; the
third owns the session: it compares the two (`reconcile`), writes the difference, and keeps the keys alive.
An event from either side only wakes it. So a source that hangs never starves the keepalive, and a store
that hangs never stops the events.

A key is kept alive only on the source's word. While the source is out of reach, its last word counts for
``grace_seconds`` longer than it would anyway: an engine that is restarted takes seconds, its containers may
run on meanwhile, and the edges' own checks take out those that do not. Then the keys are left to expire.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from discovery.catalog import Problem, Registration
from discovery.contests import Contests
from discovery.errors import SessionLost, SourceError, StoreError, StoreRefused
from discovery.journal import Journal
from discovery.mirror import Mirror
from discovery.namesakes import Namesakes
from discovery.reconcile import Plan, hosts_last, instance_at, plan
from discovery.refusals import Refusals
from discovery.retry import Backoff
from discovery.schema import is_instance, split_key
from discovery.sources.base import Source
from discovery.stores.base import HEARTBEAT_SECONDS, Session, Store
from discovery.workers import Workers

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
"""How soon a stop is noticed."""

PATIENCE = 1.5
"""How many times the time between keepalives the store may be silent until it is asked whether it lives."""

SETTLE_SECONDS = 1.0
"""How much later than our write the store must have been heard for its word to be newer than ours."""

RECHECK_SECONDS = 2 * HEARTBEAT_SECONDS
"""How often what we wrote is looked for in the store until it has been seen there."""


@dataclass(frozen=True, slots=True)
class RegistratorStatus:
    """How things stand. ``reconciled_at`` is in seconds since 1970, None before the first time.

    ``error`` is why the source or the store cannot be used at the moment, None when both can.
    """

    registered: int = 0
    reconciled_at: float | None = None
    error: str | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    """What the source said, and when it was asked."""

    registrations: tuple[Registration, ...]
    at: float


@dataclass(slots=True)
class _Held:
    """A session, when it must be kept alive next, what we wrote in it and when.

    ``unsure`` are keys whose last put failed: it may have reached the store all the same. They count as
    written, lest one is forgotten that is there, and are written again.
    """

    session: Session
    keepalive_due: float
    values: dict[str, str] = field(default_factory=dict)
    put_at: dict[str, float] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)


class Registrator:
    """One thread calls ``run``, once; ``status`` and ``stuck`` are for any thread.

    ``ttl_seconds`` is the life of a key without us, renewed every ``refresh_seconds``, default a third of
    that. ``grace_seconds`` is for how long the source may fail after it should have been asked again; until
    then its last word counts. ``journal`` knows what a former life wrote; without one, what it left is taken
    for another's, until it expires. ``node`` is what no other registrator may be called, None if any may.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        *,
        ttl_seconds: float = 30.0,
        refresh_seconds: float | None = None,
        grace_seconds: float = 60.0,
        journal: Journal | None = None,
        node: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._source = source
        self._ttl_seconds = ttl_seconds
        self._refresh_seconds = refresh_seconds or ttl_seconds / 3
        self._believe_seconds = source.relist_seconds + grace_seconds
        self._clock = clock
        self._woken = threading.Event()
        # Its keepalives tell that the store lives; the watch need not ask besides, at rest.
        patience_seconds = PATIENCE * self._refresh_seconds
        self._mirror = Mirror(store, self._woken.set, clock, patience_seconds=patience_seconds, node=node)
        self._workers = Workers(on_failure=self._woken.set)
        self._look: _Look | None = None
        self._held: _Held | None = None
        self._journal = journal or Journal()
        self._deleted_at: dict[str, float] = {}
        self._contests = Contests(clock)
        self._namesakes = Namesakes(node or "", ttl_seconds)
        self._refusals = Refusals(clock)
        self._reporters = (source, self._namesakes, self._contests, self._refusals)
        self._store_backoff = Backoff(first_seconds=0.2, most_seconds=max(0.2, ttl_seconds / 3))
        self._not_before = 0.0
        self._recheck_due: float | None = None
        self._stale = False
        self._reconciled_at: float | None = None
        self._source_error: str | None = None
        self._store_error: str | None = None

    @property
    def status(self) -> RegistratorStatus:
        """See RegistratorStatus."""
        held, look = self._held, self._look
        values = dict(held.values) if held else {}
        return RegistratorStatus(
            registered=sum(is_instance(split_key(key)[1]) for key in values) if look else 0,
            reconciled_at=self._reconciled_at,
            error=self._describe_error(),
            problems=tuple(problem for each in self._reporters for problem in each.problems),
        )

    @property
    def stuck(self) -> tuple[str, ...]:
        """Those of its own threads that make no progress."""
        return self._workers.stuck

    def _describe_error(self) -> str | None:
        if self._stale:
            return f"{self._source_error or 'the source is silent'}; the keys are left to expire"
        return self._source_error or self._store_error

    def run(self, stop: threading.Event) -> None:
        """Register until ``stop``, then withdraw everything, within two time-outs of the store."""
        workers = self._workers
        self._journal.open()
        # Before it lists, so that it keeps what it finds of them.
        self._mirror.interest = frozenset(self._journal.services)
        workers.start("registrator-source", self._look_again)
        workers.start("registrator-mirror", self._mirror.run)
        try:
            while not stop.is_set() and workers.failure is None:
                stirred = self._woken.wait(POLL_SECONDS)
                if stirred:
                    # Not after a time-out: what came since then would be wiped out unseen.
                    self._woken.clear()
                self._turn(stirred)
        finally:
            self._withdraw()
            # First, for a source that is closed under a look makes that fail.
            workers.ask_to_stop()
            self._source.close()
            workers.stop(timeout_seconds=5)
            self._journal.close()
        if workers.failure is not None:
            raise workers.failure

    # -- the source

    def _look_again(self, stop: threading.Event) -> None:
        backoff = Backoff(first_seconds=0.2, most_seconds=5)
        while not stop.is_set():
            began = self._clock()
            try:
                registrations = self._source.registrations()
            except SourceError as error:
                if self._source_error is None and not stop.is_set():
                    log.error("source_unreachable", source=self._source.name, error=str(error))
                self._source_error = str(error)
                stop.wait(backoff.next_seconds())
                continue
            backoff.reset()
            if self._source_error is not None:
                log.info("source_recovered", source=self._source.name)
            self._source_error = None
            self._look = _Look(registrations, began)
            self._woken.set()
            while not stop.is_set() and not self._source.wait(POLL_SECONDS):
                pass

    # -- the store

    def _turn(self, stirred: bool) -> None:
        """Do what is due. Whatever fails is due again, after a while."""
        now = self._clock()
        look = self._look
        if now < self._not_before or look is None or not self._mirror.ready or self._is_stale(look, now):
            # What stirred us too early is not lost: a failure is tried again, a mirror or a source that
            # has news wakes us.
            return
        keeping = self._held is not None and self._held.keepalive_due <= now
        if not (stirred or keeping or self._store_error or self._is_check_due(now)):
            return
        try:
            if keeping:
                self._keepalive()
            self._reconcile(look)
        except SessionLost as error:
            log.warning("session_lost", store=self._store.url, reason=str(error))
            self._held = None
            self._fail(error)
        except StoreError as error:
            if self._store_error is None:
                log.error("registration_failed", store=self._store.url, error=str(error))
            self._fail(error)
        else:
            if self._store_error is not None:
                log.info("registration_recovered", store=self._store.url)
            self._store_error = None
            self._store_backoff.reset()

    def _is_check_due(self, now: float) -> bool:
        """Whether a key is to be put now that was not before, or what we wrote may be verified by now."""
        recheck = self._recheck_due is not None and self._recheck_due <= now
        return recheck or self._contests.is_due(now) or self._refusals.is_due(now)

    def _is_stale(self, look: _Look, now: float) -> bool:
        """Whether the source's last word is too old to act on, and to keep keys alive on."""
        stale = now - look.at > self._believe_seconds
        if stale and not self._stale:
            log.error("keys_left_to_expire", source=self._source.name, silent_seconds=round(now - look.at))
        self._stale = stale
        return stale

    def _fail(self, error: StoreError) -> None:
        self._store_error = str(error)
        self._not_before = self._clock() + self._store_backoff.next_seconds()

    def _keepalive(self) -> None:
        held = self._held
        if held is not None:
            held.session.keepalive()
            held.keepalive_due = self._clock() + self._refresh_seconds
            self._journal.keep()

    def _reconcile(self, look: _Look) -> None:
        held = self._held
        values = held.values if held else {}
        services = {*(each.service for each in look.registrations), *(split_key(key)[0] for key in values)}
        # Before anything is written, so that the mirror keeps what it will see of it.
        self._mirror.interest = frozenset(services | self._journal.services)
        difference = plan(
            look.registrations, values, self._mirror.seen, self._is_settled, self._journal.written
        )
        contested = {key for address in difference.taken for key in instance_at(address)}
        self._namesakes.look(self._mirror, lambda key: key in contested or self._may_be_ours(key))
        self._contests.wait_for(difference.taken, difference.rivals)
        others = {key: there for key in difference.restores if (there := self._there(key)) is not None}
        restores, ceded = self._contests.restore(difference.restores, others)
        puts = {**difference.puts, **restores}
        if held is not None:
            left = {*difference.deletes, *difference.cedes, *ceded}
            puts = {**{key: values[key] for key in held.unsure - left}, **puts}
        refused = self._put(
            {key: value for key, value in puts.items() if not self._refusals.is_set_aside(key)}
        )
        self._leave(difference, ceded)
        if refused is not None:
            raise refused
        self._refusals.keep_only(services)
        self._forget_what_is_gone()
        self._reconciled_at = time.time()
        unverified = self._held is not None and self._held.put_at
        self._recheck_due = self._clock() + RECHECK_SECONDS if unverified or self._deleted_at else None

    def _put(self, puts: dict[str, str]) -> StoreRefused | None:
        """Write these; why, when the store refuses all: then what is to be deleted still can be."""
        if not puts:
            return None
        if self._held is None:
            session = self._store.session(self._ttl_seconds)
            self._held = _Held(session, self._clock() + self._refresh_seconds)
        held = self._held
        before = held.values
        held.values = {**before, **puts}
        held.unsure |= puts.keys()
        self._journal.note(puts)

        def write(keys: list[str]) -> None:
            for part in hosts_last(keys):
                held.session.put({key: puts[key] for key in part})

        try:
            written = self._refusals.write(puts, write)
        except StoreRefused as error:
            return error
        finally:
            held.put_at.update(dict.fromkeys(puts, self._clock()))
        sure = {key: value for key, value in puts.items() if split_key(key)[0] in written}
        held.unsure -= sure.keys()
        self._journal.settle(sure)
        for key, value in sure.items():
            if is_instance(split_key(key)[1]) and before.get(key) != value:
                log.info("instance_registered", key=key, address=value)
        return None

    def _leave(self, difference: Plan, ceded: list[str]) -> None:
        """Delete what is to be gone, and let go of what another has taken over."""
        held = self._held
        former = [key for key in difference.removes if key not in self._deleted_at]
        if former:
            self._store.delete(former)
            self._deleted_at.update(dict.fromkeys(former, self._clock()))
            log.info("former_keys_removed", keys=len(former))
        if held is None:
            return
        deletes = [key for key in difference.deletes if not self._refusals.is_set_aside(key)]
        if deletes:
            for part in reversed(hosts_last(deletes)):
                self._refusals.write(part, held.session.delete)
            deletes = [key for key in deletes if not self._refusals.is_set_aside(key)]
            self._deleted_at.update(dict.fromkeys(deletes, self._clock()))
        lost = {*difference.cedes, *(key for address in ceded for key in instance_at(address))}
        self._journal.forget(lost)
        if ceded:
            # To ask for them.
            self._woken.set()
        gone = {*deletes, *lost}
        for key in sorted(gone):
            held.put_at.pop(key, None)
            held.unsure.discard(key)
            if is_instance(split_key(key)[1]):
                log.info("instance_withdrawn", key=key)
        if gone:
            held.values = {key: value for key, value in held.values.items() if key not in gone}

    def _may_be_ours(self, key: str) -> bool:
        """Whether we wrote a key, now or in a former life, or deleted it and have not seen it go."""
        held = self._held.values if self._held is not None else {}
        return key in held or key in self._deleted_at or key in self._journal.written

    def _is_settled(self, key: str) -> bool:
        """Whether our last write of a key has been seen, or would have been by now."""
        held = self._held
        if held is None or key not in held.put_at:
            return True
        if self._there(key) == held.values[key] or self._has_heard_since(held.put_at[key]):
            del held.put_at[key]
        return key not in held.put_at

    def _has_heard_since(self, at: float) -> bool:
        return self._mirror.heard_at - at > SETTLE_SECONDS

    def _there(self, key: str) -> str | None:
        service, rest = split_key(key)
        return self._mirror.seen(service).get(rest)

    def _forget_what_is_gone(self) -> None:
        """Of what we wrote only that is to be known which may be in the store still."""
        self._deleted_at = {k: at for k, at in self._deleted_at.items() if not self._has_heard_since(at)}
        held = self._held.values if self._held is not None else {}
        left = self._journal.written.keys() - held.keys() - self._deleted_at.keys()
        self._journal.forget([key for key in left if self._there(key) not in self._journal.written[key]])

    # -- the end

    def _withdraw(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        for last in (False, True):
            try:
                # First, or a store without transactions shows them no longer draining for an instant.
                # Refused, they go with the session all the same.
                with suppress(StoreRefused):
                    held.session.delete(key for key in held.values if is_instance(split_key(key)[1]))
                held.session.close()
            except SessionLost:
                return
            except StoreError as error:
                if last:
                    log.error("withdrawal_failed", error=str(error), expire_in_seconds=self._ttl_seconds)
            else:
                self._journal.forget(held.values)
                log.info("withdrawn", keys=len(held.values))
                return
