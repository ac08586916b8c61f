"""The containers of a Docker engine as a source: subscribe to events, then list, then follow.

What is known of each container is kept, and an event inspects anew only the container it is about.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from discovery.catalog import Problem, Registration
from discovery.errors import SchemaError, SourceError
from discovery.schema import printable
from discovery.sources.container import Container, read_container
from discovery.sources.docker_engine import Engine, Event, EventStream
from discovery.sources.engine_client import EngineAddress
from discovery.sources.readiness import DrainRequests, NoDrains, Readiness, Readying
from discovery.sources.rules import PREDEFINED_NETWORKS, Rules, direct_networks

log = structlog.get_logger(__name__)

REPLAY_SECONDS = 300.0
"""How far back events are asked for at a subscription: a stop signal may have been sent before it. The
engine begins to replay after it has accepted, so nothing falls between."""


class DockerSource:
    """See ``base.Source``. ``relist_seconds`` bounds how long anything can go unnoticed.

    ``readying`` says how instances get ready, ``drains`` which containers are to be drained on request.
    """

    name = "docker"

    def __init__(
        self,
        address: EngineAddress | str,
        rules: Rules,
        *,
        readying: Readying | None = None,
        drains: DrainRequests | None = None,
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
        self._readiness = Readiness(
            readying or Readying(), drains or NoDrains(), self, self._wake, clock, wall_clock
        )

    def registrations(self) -> tuple[Registration, ...]:
        """See ``base.Source``."""
        try:
            engine, stream = self._follow()
            events = stream.take()
            if self._clock() >= self._relist_due:
                self._relist(engine)
                self._relist_due = self._clock() + self.relist_seconds
            else:
                changed = self._changed_by(events)
                for container_id in changed:
                    self._inspect(engine, container_id)
                if any(self._is_on_own_network(container_id) for container_id in changed):
                    # It may have been made a moment ago.
                    self._look_at_networks(engine)
        except SourceError:
            self._disconnect()
            raise
        self._readiness.note(events, self._containers)
        outcome = self._readiness.outcome(self._containers, self._rules)
        self.problems = (*outcome.problems, *self._unreadable.values())
        return outcome.registrations

    def wait(self, timeout_seconds: float) -> bool:
        """See ``base.Source``."""
        deadline = self._clock() + timeout_seconds
        due = min([self._relist_due, *self._readiness.due()])
        with self._changed:
            self._changed.wait_for(self._is_stirred, max(0.0, min(deadline, due) - self._clock()))
        return self._is_stirred() or self._clock() >= due

    def close(self) -> None:
        """See ``base.Source``."""
        self._closed = True
        self._disconnect()
        self._readiness.close()
        self._wake()

    # -- the engine

    def _follow(self) -> tuple[Engine, EventStream]:
        """A live subscription; after a new one everything is listed again."""
        # Read once: another thread may close us meanwhile.
        engine, stream = self._engine, self._stream
        if stream is not None and stream.ended:
            self._disconnect()
            engine = stream = None
        if engine is None or stream is None:
            self._check_open()
            engine = self._engine = Engine(self._address, self._timeout_seconds)
            since = self._wall_clock() - REPLAY_SECONDS
            # A stream that is quiet for longer is made anew, for its connection may be dead.
            stream = self._stream = engine.events(since, self.relist_seconds, self._wake)
            self._relist_due = 0.0
        self._check_open()
        return engine, stream

    def _check_open(self) -> None:
        if self._closed:
            # Whoever closed us may not have seen what was opened since.
            self._disconnect()
            raise SourceError("the source is closed")

    def _disconnect(self) -> None:
        stream, engine = self._stream, self._engine
        self._stream = self._engine = None
        if stream is not None:
            stream.close()
        if engine is not None:
            engine.close()

    def _relist(self, engine: Engine) -> None:
        """Compare with the engine's list, and inspect what is new or other than when it was last listed."""
        self._look_at_networks(engine)
        listed = {item["Id"]: _fingerprint(item) for item in engine.list()}
        for container_id in self._known() - listed.keys():
            self._forget(container_id)
        for container_id, fingerprint in listed.items():
            if self._listed_as.get(container_id) != fingerprint:
                self._inspect(engine, container_id)
                self._listed_as[container_id] = fingerprint

    def _look_at_networks(self, engine: Engine) -> None:
        direct = direct_networks(engine.networks())
        if direct != self._rules.direct:
            self._rules = replace(self._rules, direct=direct)

    def _is_on_own_network(self, container_id: str) -> bool:
        """Whether a container is on a network that somebody made, which may be one that leads out."""
        container = self._containers.get(container_id)
        return container is not None and bool(container.networks.keys() - PREDEFINED_NETWORKS)

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

    def _changed_by(self, events: Iterable[Event]) -> list[str]:
        """The containers to be inspected after these events, each once.

        Not for a signal alone, which changes nothing that is inspected; nor those that are gone, as most are
        that a replay tells of.
        """
        actions: dict[str, list[str]] = {}
        for event in events:
            actions.setdefault(event.container_id, []).append(event.action)
        changed = []
        for container_id, done in actions.items():
            if done[-1] == "destroy":
                self._forget(container_id)
            elif container_id not in self._containers or any(action != "kill" for action in done):
                changed.append(container_id)
        return changed

    # -- checks by command

    def start_command(self, container_id: str, command: tuple[str, ...]) -> str:
        """See ``checker.Commands``."""
        return self._connected().start_command(container_id, command)

    def exit_status(self, command_id: str) -> int | None:
        """See ``checker.Commands``."""
        return self._connected().exit_status(command_id)

    def _connected(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise SourceError("the engine is out of reach")
        return engine

    # -- waking

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_stirred(self) -> bool:
        stream = self._stream
        return self._closed or stream is None or stream.stirred or self._readiness.changed()


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
