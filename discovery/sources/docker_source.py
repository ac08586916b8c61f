"""The containers of a Docker engine as a source: subscribe to events, then list, then follow.

What is known of each container is kept, and an event inspects anew only the container it is about.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any

import structlog

from discovery.catalog import Problem, Registration
from discovery.errors import SchemaError, SourceError
from discovery.schema import printable
from discovery.sources.container import Container, read_container
from discovery.sources.docker import Outcome, Rules, register_all
from discovery.sources.docker_engine import Engine, Event, EventStream
from discovery.sources.engine_client import EngineAddress

log = structlog.get_logger(__name__)

REPLAY_SECONDS = 300.0
"""How far back events are asked for at a subscription: a stop signal may have been sent before it. The
engine begins to replay after it has accepted, so nothing falls between."""

STOP_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Stopping:
    """A stop signal was sent at ``at_us`` (engine's clock); believed until ``until`` (ours)."""

    at_us: int
    until: float


class DockerSource:
    """See ``base.Source``. ``relist_seconds`` bounds how long anything can go unnoticed."""

    name = "docker"

    def __init__(
        self,
        address: EngineAddress | str,
        rules: Rules,
        *,
        relist_seconds: float = 60.0,
        timeout_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.relist_seconds = relist_seconds
        self.problems: tuple[Problem, ...] = ()
        self._address = address
        self._rules = rules
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._changed = threading.Condition()
        self._closed = False
        self._engine: Engine | None = None
        self._stream: EventStream | None = None
        self._relist_due = 0.0
        self._containers: dict[str, Container] = {}
        self._listed_as: dict[str, object] = {}
        self._unreadable: dict[str, Problem] = {}
        self._stopping: dict[str, _Stopping] = {}

    def registrations(self) -> tuple[Registration, ...]:
        """See ``base.Source``."""
        try:
            engine, stream = self._follow()
            events = stream.take()
            if self._clock() >= self._relist_due:
                self._relist(engine)
                self._relist_due = self._clock() + self.relist_seconds
            else:
                for container_id in dict.fromkeys(event.container_id for event in events):
                    self._inspect(engine, container_id)
        except SourceError:
            self._disconnect()
            raise
        self._note_stop_signals(events)
        outcome = self._register()
        self.problems = outcome.problems
        return outcome.registrations

    def wait(self, timeout_seconds: float) -> bool:
        """See ``base.Source``."""
        deadline = self._clock() + timeout_seconds
        due = min([self._relist_due, *(each.until for each in self._stopping.values())])
        with self._changed:
            self._changed.wait_for(self._is_stirred, max(0.0, min(deadline, due) - self._clock()))
        return self._is_stirred() or self._clock() >= due

    def close(self) -> None:
        """See ``base.Source``."""
        self._closed = True
        self._disconnect()
        self._wake()

    # -- the engine

    def _follow(self) -> tuple[Engine, EventStream]:
        """A live subscription; after a new one everything is listed again."""
        if self._closed:
            raise SourceError("the source is closed")
        if self._stream is not None and self._stream.ended:
            self._disconnect()
        if self._engine is None or self._stream is None:
            engine = self._engine = Engine(self._address, self._timeout_seconds)
            since = self._wall_clock() - REPLAY_SECONDS
            # A stream that is quiet for longer is made anew, for its connection may be dead.
            self._stream = engine.events(since, self.relist_seconds, self._wake)
            self._relist_due = 0.0
        return self._engine, self._stream

    def _disconnect(self) -> None:
        stream, engine = self._stream, self._engine
        self._stream = self._engine = None
        if stream is not None:
            stream.close()
        if engine is not None:
            engine.close()

    def _relist(self, engine: Engine) -> None:
        """Compare with the engine's list, and inspect what is new or other than when it was last listed."""
        listed = {item["Id"]: _fingerprint(item) for item in engine.list()}
        for container_id in self._known() - listed.keys():
            self._forget(container_id)
        for container_id, fingerprint in listed.items():
            if self._listed_as.get(container_id) != fingerprint:
                self._inspect(engine, container_id)
                self._listed_as[container_id] = fingerprint

    def _inspect(self, engine: Engine, container_id: str) -> None:
        document = engine.inspect(container_id)
        self._forget(container_id)
        if document is None:
            return
        try:
            container = read_container(document)
        except SchemaError as error:
            subject = f"container {printable(str(document.get('Name', container_id)))}"
            self._unreadable[container_id] = Problem(None, subject, str(error))
            return
        if container.status in ("running", "paused", "restarting"):
            self._containers[container_id] = container

    def _forget(self, container_id: str) -> None:
        for known in (self._containers, self._unreadable, self._listed_as):
            known.pop(container_id, None)

    def _known(self) -> set[str]:
        return {*self._containers, *self._unreadable, *self._listed_as}

    # -- stop signals

    def _note_stop_signals(self, events: Iterable[Event]) -> None:
        for event in events:
            container = self._containers.get(event.container_id)
            if container is not None and is_stop(event, container):
                # The grace begins when the signal was sent, which a replayed event tells of late. Where the
                # engine's clock is not ours, the grace still has its bound.
                grace_seconds = container.stop_seconds + STOP_MARGIN_SECONDS
                age_seconds = max(0.0, self._wall_clock() - event.at_us / 1e6)
                until = self._clock() + max(0.0, grace_seconds - age_seconds)
                self._stopping[container.id] = _Stopping(event.at_us, until)

    def _register(self) -> Outcome:
        now = self._clock()
        self._stopping = {
            id_: mark
            for id_, mark in self._stopping.items()
            if mark.until > now and id_ in self._containers and mark.at_us >= self._containers[id_].started_us
        }
        serving = [each for id_, each in self._containers.items() if id_ not in self._stopping]
        outcome = register_all(serving, self._containers, self._rules)
        return Outcome(outcome.registrations, (*outcome.problems, *self._unreadable.values()))

    # -- waking

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_stirred(self) -> bool:
        stream = self._stream
        return self._closed or stream is None or stream.stirred


def is_stop(event: Event, container: Container) -> bool:
    """Whether this event is the signal that ends the container: its stop signal, or SIGKILL.

    A container may ignore its stop signal; then, a while after the engine would have killed it, it counts as
    running again. Any other signal, such as SIGHUP, says nothing.
    """
    return event.action == "kill" and event.signal in (container.stop_signal, int(SIGKILL))


def _fingerprint(item: Mapping[str, Any]) -> object:
    """What a list tells of a container's state, without what changes by itself, such as `Up 3 minutes`."""
    networks = (item.get("NetworkSettings") or {}).get("Networks") or {}
    return (
        item.get("Names"),
        item.get("State"),
        re.findall(r"\(.*\)", item.get("Status") or ""),
        sorted(_comparable(port) for port in item.get("Ports") or ()),
        sorted(
            (name, each.get("IPAddress"), each.get("GlobalIPv6Address")) for name, each in networks.items()
        ),
    )


def _comparable(port: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """A mapping as a value that can be sorted and compared."""
    return tuple(sorted((key, str(value)) for key, value in port.items()))
