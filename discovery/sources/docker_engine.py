"""The Docker engine's API, as much of it as is needed: list, inspect, follow events.

Only ever GET, but for checks by command and `discovery stop`, which somebody has to ask for.

Here the docker library's errors become SourceError.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import docker
import requests
import structlog
import urllib3
from docker.types import CancellableStream

from discovery.sources.engine_client import FAILURES, EngineAddress, open_client, reason_of, unreachable

log = structlog.get_logger(__name__)

_WATCHED = {
    "type": ["container", "network"],
    # Not exec_*, which every health check sends.
    "event": [
        *("start", "restart", "kill", "stop", "die", "destroy", "pause", "unpause"),
        *("rename", "update", "health_status", "connect", "disconnect"),
    ],
}


def ping(address: EngineAddress | str, timeout_seconds: float = 5.0) -> None:
    """Return when an engine answers there; SourceError otherwise, naming the mend."""
    Engine(address, timeout_seconds).close()


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a container. ``signal`` is that of a kill; ``at_us`` by the engine's clock."""

    container_id: str
    action: str
    signal: int | None
    at_us: int


class Engine:
    """A connection to an engine; every method raises SourceError. Opening it asks its version.

    ``timeout_seconds`` bounds each call. Thread-safe.
    """

    def __init__(self, address: EngineAddress | str, timeout_seconds: float) -> None:
        self._address = EngineAddress(address) if isinstance(address, str) else address
        self._timeout_seconds = timeout_seconds
        self._client = open_client(self._address, timeout_seconds)

    def networks(self) -> list[dict[str, Any]]:
        """The engine's networks, as it lists them."""
        with self._translated():
            found: list[dict[str, Any]] = self._client.networks()
            return found

    def list(self) -> list[dict[str, Any]]:
        """The containers that run or are paused, as the engine lists them."""
        with self._translated():
            found: list[dict[str, Any]] = self._client.containers()
            return found

    def inspect(self, container_id: str) -> dict[str, Any] | None:
        """Everything about one container, None when there is no such container."""
        with self._translated():
            try:
                document: dict[str, Any] = self._client.inspect_container(container_id)
            except docker.errors.NotFound:
                return None
            return document

    def start_command(self, container_id: str, command: tuple[str, ...]) -> str:
        """See ``checker.Commands``."""
        with self._translated():
            made = self._client.exec_create(container_id, [*command], stdout=False, stderr=False)
            self._client.exec_start(made["Id"], detach=True)
            return str(made["Id"])

    def exit_status(self, command_id: str) -> int | None:
        """See ``checker.Commands``."""
        with self._translated():
            found = self._client.exec_inspect(command_id)
            return None if found["Running"] else int(found["ExitCode"] or 0)

    def stop(self, container_id: str, stop_seconds: float) -> None:
        """Stop a container, which has so long from its stop signal until it is killed."""
        with self._translated():
            self._client.stop(container_id, timeout=int(stop_seconds))

    def events(self, since: float, quiet_seconds: float, wake: Callable[[], None]) -> "EventStream":
        """Subscribe; returns once the engine has accepted. ``since`` is in seconds since 1970."""
        with self._translated():
            # Not the library's own method, for that one waits for ever on a connection that died.
            response = self._client.get(
                f"{self._client.base_url}/v{self._client.api_version}/events",
                params={"since": str(int(since)), "filters": json.dumps(_WATCHED)},
                stream=True,
                timeout=(self._timeout_seconds, quiet_seconds),
            )
            response.raise_for_status()
        return EventStream(response, wake)

    def close(self) -> None:
        """Close its connections, but not its event streams."""
        self._client.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise unreachable(self._address, error) from error


class EventStream:
    """Follows one subscription in a thread of its own until it ends, for whatever reason.

    ``wake`` is called after each event and at the end.
    """

    def __init__(self, response: requests.Response, wake: Callable[[], None]) -> None:
        self._stream = CancellableStream(response.iter_lines(), response)
        self._wake = wake
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._ended = False
        self._thread = threading.Thread(target=self._follow, name="docker-events", daemon=True)
        self._thread.start()

    @property
    def stirred(self) -> bool:
        """Whether there are events to take, or the stream has ended."""
        return bool(self._events) or self._ended

    @property
    def ended(self) -> bool:
        """Whether no more events will come; those before may still have to be taken."""
        return self._ended

    def take(self) -> list[Event]:
        """The events since the last call, in their order."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the subscription and its thread."""
        with contextlib.suppress(OSError, AttributeError):
            # AttributeError: it has ended by itself, and there is no socket any more.
            self._stream.close()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        try:
            for line in self._stream:
                event = _read_event(line)
                if event is not None:
                    with self._lock:
                        self._events.append(event)
                    self._wake()
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # The reader subscribes again, and then lists: nothing is lost.
            log.debug("docker_events_ended", reason=reason_of(error))
        finally:
            self._ended = True
            self._wake()


def _read_event(line: bytes) -> Event | None:
    """An event as the engine sends it; None for one that is about no container."""
    if not line:
        return None
    message = json.loads(line)
    actor = message.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    concerned = attributes.get("container") if message.get("Type") == "network" else actor.get("ID")
    if not concerned:
        return None
    number = attributes.get("signal", "")
    return Event(
        container_id=concerned,
        action=message.get("Action", ""),
        signal=int(number) if number.isdigit() else None,
        at_us=int(message.get("timeNano", 0)) // 1000,
    )
