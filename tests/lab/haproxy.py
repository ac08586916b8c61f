"""A real HAProxy under test, real backends behind it, and clients in front."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Attributes, Catalog, Instance, Service
from discovery.haproxy.apply import HAProxy
from discovery.haproxy.settings import ProxySettings, join_address
from tests.lab.need import need

TEMPLATES = Path(__file__).parents[2] / "templates" / "haproxy"
PATIENCE_SECONDS = 30.0
VERSIONS = ("2.6", "3.0")


def haproxy_binary(version: str) -> str:
    """The program of a version: the machine's own, or for 3.0 the one that DISCOVERY_TEST_HAPROXY30 names."""
    if version == "2.6":
        return need("haproxy")
    path = os.environ.get("DISCOVERY_TEST_HAPROXY30")
    if path:
        return path
    if os.environ.get("CI"):
        pytest.fail("DISCOVERY_TEST_HAPROXY30 names no HAProxy 3.0")
    pytest.skip("DISCOVERY_TEST_HAPROXY30 names no HAProxy 3.0")


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of ``condition``; fails after a generous time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not in {PATIENCE_SECONDS:g} s: {what}")
        time.sleep(0.02)
    return value


# ---- behind -----------------------------------------------------------------------------------------


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = {
            "server": self.server.name,  # type: ignore[attr-defined]
            "address": join_address(*self.connection.getsockname()[:2]),
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    name: str

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Echo)

    def handle_error(self, request: object, client_address: object) -> None:
        """A health check resets its connection; that is no news."""


@contextmanager
def echo(name: str = "echo", port: int = 0, host: str = "127.0.0.1") -> Iterator[int]:
    """An HTTP server that tells what it was asked, and at which address; yields its port."""
    server = _Server((host, port))
    server.name = name
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ---- in front ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def seen(self) -> Any:
        """What the echo server saw."""
        assert self.status == 200, (self.status, self.text)
        return json.loads(self.text)


def fetch(
    port: int,
    target: str = "/",
    host: str | None = None,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    address: str = "127.0.0.1",
) -> Answer:
    """One request on a connection of its own, with the request target exactly as given.

    Host is the address asked unless another is given.
    """
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE_SECONDS)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", join_address(address, port) if host is None else host)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read().decode())
    finally:
        connection.close()


# ---- in between -------------------------------------------------------------------------------------


def service(name: str, *ports: int, scheme: Any = "http", **more: Any) -> Service:
    """A service with instances on loopback, ids 0, 1, …"""
    instances = tuple(Instance(str(i), "127.0.0.1", port) for i, port in enumerate(ports))
    return Service(name, scheme, more.get("host_port"), instances, more.get("options", {}))


def draining(each: Service) -> Service:
    """The same with its first instance on its way out."""
    first, *rest = each.instances
    gone = Instance(first.id, first.host, first.port, Attributes(draining=True))
    return Service(each.name, each.scheme, each.host_port, (gone, *rest), each.options)


def catalog(*services: Service, revision: int = 1) -> Catalog:
    return Catalog(revision, {each.name: each for each in services})


def settings(directory: Path, binary: str, **more: Any) -> ProxySettings:
    """Settings for a proxy on a free port of loopback."""
    more.setdefault("templates", (TEMPLATES,))
    more.setdefault("http", (f"127.0.0.1:{free_port()}",))
    more.setdefault("stop_timeout_seconds", 0.5)
    more.setdefault("reload_interval_seconds", 0.0)
    return ProxySettings(directory, haproxy=binary, bind_address="127.0.0.1", **more)


def front_port(of: ProxySettings) -> int:
    return int(of.http[0].rpartition(":")[2])


@contextmanager
def running(of: ProxySettings, *services: Service) -> Iterator[HAProxy]:
    """The proxy role, started, supervised, with these services applied; ended afterwards."""
    proxy = HAProxy(of)
    stop = threading.Event()
    supervisor = threading.Thread(target=proxy.supervise, args=(stop,), daemon=True)
    proxy.start()
    try:
        proxy.apply(catalog(*services))
        supervisor.start()
        yield proxy
    finally:
        stop.set()
        proxy.stop()
        if supervisor.ident:
            supervisor.join()
