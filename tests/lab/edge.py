"""A real edge before backends that show what reached them, for tests of what it lets through."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.haproxy import free_port, front_port, haproxy_binary, running, service, settings
from tests.lab.raw import RawAnswer, RawBackend, ask, raw_backend

BACKENDS_HOPS = (
    "Connection: X-Frame-Options, upgrade",
    "X-Frame-Options: DENY",
    "Keep-Alive: timeout=5",
    "Upgrade: h2,h2c",
    "Proxy-Authenticate: Basic",
    "Proxy-Connection: keep-alive",
)


@dataclass
class Edge:
    """Services ``web``; ``kept``, with path=keep; ``hops``, whose answers have headers of its connection.

    ``doors`` are the ports that lead to web: ``common``, by Host and path, and ``host_port``. ``pid`` is
    HAProxy's.
    """

    doors: dict[str, int]
    web: RawBackend
    kept: RawBackend
    pid: int | None

    def ask(self, data: str, door: str = "common") -> RawAnswer:
        """The answer to these bytes."""
        return ask(self.doors[door], data)

    def refuses(self, data: str, door: str = "common", status: int = 400) -> None:
        """Assert that it answers so, and that nothing of it reaches a backend."""
        before = self.reached
        answer = self.ask(data, door)
        assert answer.status == status, answer
        assert self.reached == before

    @property
    def reached(self) -> int:
        """How many requests came through."""
        return len(self.web.requests) + len(self.kept.requests)


@contextmanager
def raw_edge(version: str, directory: Path, **more: Any) -> Iterator[Edge]:
    """An Edge of a HAProxy version; ``more`` are settings of its own."""
    with ExitStack() as stack:
        web, kept, hops = (stack.enter_context(raw_backend(*extra)) for extra in ((), (), BACKENDS_HOPS))
        host_port = free_port()
        of = settings(directory, haproxy_binary(version), **more)
        services = (
            service("web", web.port, host_port=host_port),
            service("kept", kept.port, options={"path": "keep"}),
            service("hops", hops.port),
        )
        proxy = stack.enter_context(running(of, *services))
        yield Edge({"common": front_port(of), "host_port": host_port}, web, kept, proxy.status.pid)
