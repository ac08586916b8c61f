"""`discovery stop`: take a container out of rotation everywhere, and only then stop it.

For images that end at once on their stop signal: what reaches them in the moments until every edge knows
would be lost. The registrator is asked to drain the container, the edges confirm by `/edges/<node>` that they
run what they were told, requests under way get some time, and then the engine is told to stop it.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from discovery.catalog import Attributes
from discovery.drains import Drains
from discovery.errors import CommandError, UsageError
from discovery.schema import ATTRIBUTES, EDGES, SERVICES, is_instance, printable, read_attributes, split_key
from discovery.sources.container import Container, read_container
from discovery.sources.docker_engine import Engine
from discovery.stores.base import Changes, Entry, Snapshot, Store

ANSWER_SECONDS = 10.0
"""How long the registrator has to mark a container as draining."""

MARGIN_SECONDS = 30.0
"""How much longer than everything may take a request holds: it ends by itself when we are killed."""

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Times:
    """``confirm_seconds`` is how long edges have to confirm, ``drain_seconds`` what requests get then."""

    confirm_seconds: float
    drain_seconds: float


class Stop:
    """One stop of one container; ``say`` tells people what happens.

    ``node`` is the name under which this node's registrator registers.
    """

    def __init__(
        self, engine: Engine, store: Store, drains: Drains, node: str, say: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._store = store
        self._drains = drains
        self._node = node
        self._say = say
        self._never = threading.Event()

    def run(self, name: str, times: Times) -> None:
        """Drain and stop the container of this name or id.

        Raises UsageError when there is none that runs, CommandError when it cannot be drained: it runs on
        then. Edges that do not confirm in time are named, and waited for no longer.
        """
        document = self._engine.inspect(name)
        if document is None:
            raise UsageError(f"there is no container {printable(name)!r}")
        container = read_container(document)
        if container.status not in ("running", "paused", "restarting"):
            raise UsageError(f"container {container.name} does not run: it is {container.status}")
        snapshot = self._store.snapshot(SERVICES)
        registered = self._find(container, snapshot.entries)
        if not registered:
            self._say(f"{container.name} is not registered by node {self._node}; it is stopped")
            self._engine.stop(container.id, container.stop_seconds)
            return
        total = ANSWER_SECONDS + times.confirm_seconds + times.drain_seconds + container.stop_seconds
        with self._drains.requested(container.id, total + MARGIN_SECONDS):
            revision = self._wait_draining(container, snapshot)
            self._say(f"{container.name} is draining: {', '.join(sorted(registered))}")
            self._wait_confirmed(revision, times.confirm_seconds)
            self._never.wait(times.drain_seconds)
            self._engine.stop(container.id, container.stop_seconds)
        self._say(f"{container.name} is stopped")

    def _wait_draining(self, container: Container, snapshot: Snapshot) -> int:
        """The revision of the store, after ``snapshot``, in which all of its instances are draining."""
        entries = dict(snapshot.entries)
        deadline = time.monotonic() + ANSWER_SECONDS
        # Watched, not read: what keeps a key of etcd v2 alive makes it look younger, which no edge hears of.
        watch = cast("Generator[Changes]", self._store.watch(SERVICES, snapshot.revision))
        with contextlib.closing(watch):
            while True:
                registered = self._find(container, entries)
                if all(attributes.draining for _, attributes in registered.values()):
                    return max((entry.modified for entry, _ in registered.values()), default=0)
                if time.monotonic() > deadline:
                    break
                for change in next(watch).changes:
                    if change.entry is None:
                        entries.pop(change.key, None)
                    else:
                        entries[change.key] = change.entry
        raise CommandError(
            f"{container.name} runs on: no registrator of node {self._node} has drained it within"
            f" {ANSWER_SECONDS:g} s (is its agent up, with the same --state and --node?)"
        )

    def _wait_confirmed(self, revision: int, seconds: float) -> None:
        missing: list[str] = []
        for _ in _until(seconds, self._never):
            edges = self._store.snapshot(EDGES).entries.values()
            missing = [entry.key.removeprefix(EDGES) for entry in edges if _revision(entry) < revision]
            if not missing:
                self._say("every edge has confirmed that it sends nothing new there")
                return
        self._say(f"not confirmed within {seconds:g} s: {printable(', '.join(sorted(missing)))}")

    def _find(
        self, container: Container, entries: Mapping[str, Entry]
    ) -> dict[str, tuple[Entry, Attributes]]:
        """The container's instances among these, as `<service> <id>`, with what is said of each."""
        known = {instance for key in entries if (instance := _instance(key)) is not None}
        found = {}
        for key, entry in entries.items():
            service, rest = split_key(key)
            id_ = rest.removeprefix(ATTRIBUTES)
            if rest.startswith(ATTRIBUTES) and (service, id_) in known:
                attributes = read_attributes(entry.value)
                if attributes.node == self._node and attributes.container == container.name:
                    found[f"{service} {id_}"] = entry, attributes
        return found


def _until(seconds: float, never: threading.Event) -> Iterator[None]:
    """Again and again, for so long, once at least."""
    deadline = time.monotonic() + seconds
    yield
    while time.monotonic() < deadline:
        never.wait(POLL_SECONDS)
        yield


def _instance(key: str) -> tuple[str, str] | None:
    service, rest = split_key(key)
    return (service, rest.partition("/")[2]) if is_instance(rest) else None


def _revision(entry: Entry) -> int:
    """The revision that an edge runs; -1 when it does not say so in a way that is understood."""
    try:
        value = json.loads(entry.value)
    except (ValueError, RecursionError):
        return -1
    revision = value.get("revision") if isinstance(value, Mapping) else None
    return revision if isinstance(revision, int) else -1
