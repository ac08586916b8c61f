"""Connections to instances that are kept for more requests: they lead nowhere else after a change."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from discovery.catalog import Instance, Service
from tests.lab.haproxy import (
    PATIENCE_SECONDS,
    VERSIONS,
    catalog,
    front_port,
    haproxy_binary,
    running,
    settings,
    until,
)
from tests.lab.worker_state import map_of, serving


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


def lead_to(name: str, *ports: int) -> Service:
    """A service with an instance at each port, which is its id too."""
    return Service(name, instances=tuple(Instance(str(port), "127.0.0.1", port) for port in ports))


@dataclass
class Slow:
    """A backend whose every answer names it, and that waits with those to ``/slow``."""

    name: bytes
    go_on: threading.Event
    listener: socket.socket
    waiting: int = 0

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    request = connection.recv(1 << 16)
                except OSError:
                    return
                if not request:
                    return
                if b" /slow " in request:
                    self.waiting += 1
                    self.go_on.wait(PATIENCE_SECONDS)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + self.name)


@contextmanager
def slow(name: str, go_on: threading.Event) -> Iterator[Slow]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = Slow(name.encode(), go_on, listener)
        threading.Thread(target=backend.accept, daemon=True).start()
        yield backend
        listener.shutdown(socket.SHUT_RDWR)


def get(connection: HTTPConnection, path: str, host: str) -> str:
    connection.request("GET", path, headers={"Host": host})
    with connection.getresponse() as response:
        return response.read().decode()


@pytest.mark.parametrize("name", ["web", "new"])
def test_kept_connections_never_lead_to_the_former_instance(binary: str, name: str, tmp_path: Path) -> None:
    """Neither those that are idle when a slot is used again nor those with a request under way."""
    of, go_on = settings(tmp_path, binary), threading.Event()
    with ExitStack() as stack:
        a, b, c, d = (stack.enter_context(slow(each, go_on)) for each in "abcd")
        proxy = stack.enter_context(running(of, lead_to("web", a.port)))
        proxy.apply(catalog(lead_to(name, a.port)))
        clients = [
            stack.enter_context(
                closing(HTTPConnection("127.0.0.1", front_port(of), timeout=PATIENCE_SECONDS))
            )
            for _ in range(8)
        ]
        assert {get(each, "/", name) for each in clients} == {"a"}
        busy = [threading.Thread(target=get, args=(each, "/slow", name)) for each in clients[:4]]
        for thread in busy:
            thread.start()
        until(lambda: a.waiting == 4, "requests are under way")
        for ports in ((b.port,), (b.port, c.port), (c.port,)):
            proxy.apply(catalog(lead_to(name, *ports)))
        go_on.set()
        for thread in busy:
            thread.join(PATIENCE_SECONDS)
        for expected, backend in (("c", c), ("d", d), ("b", b)):
            proxy.apply(catalog(lead_to(name, backend.port)))
            assert {get(each, "/", name) for each in clients * 3} == {expected}
        assert proxy.status.reloads == {"start": 1}


def test_kept_connections_of_a_service_never_serve_the_next_one(binary: str, tmp_path: Path) -> None:
    """The next service has the same spare section, and its first instance the same slot."""
    of, go_on = settings(tmp_path, binary, spare_backends=1), threading.Event()
    with ExitStack() as stack:
        a, b = (stack.enter_context(slow(each, go_on)) for each in "ab")
        proxy = stack.enter_context(running(replace(of, spare_backends=1)))
        proxy._disk._settings = replace(of, spare_backends=0)  # no quiet reload for one that is used
        proxy.apply(catalog(lead_to("first", a.port)))
        clients = [
            stack.enter_context(
                closing(HTTPConnection("127.0.0.1", front_port(of), timeout=PATIENCE_SECONDS))
            )
            for _ in range(4)
        ]
        busy = [threading.Thread(target=get, args=(each, "/slow", "first")) for each in clients]
        for thread in busy:
            thread.start()
        until(lambda: a.waiting == 4, "requests are under way")
        place = map_of(of, "backends.map")["first"]
        proxy.apply(catalog())
        proxy.apply(catalog(lead_to("second", b.port)))
        assert map_of(of, "backends.map") == {"second": place}
        go_on.set()
        for thread in busy:
            thread.join(PATIENCE_SECONDS)
        assert {get(each, "/", "second") for each in clients * 3} == {"b"}
        assert serving(of)[place] == [(f"127.0.0.1:{b.port}", 1)]
