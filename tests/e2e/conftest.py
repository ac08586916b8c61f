"""The real parts of the end-to-end tests: an engine and etcd servers for all of them, an agent for each."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.containers import Containers
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    with DockerEngine() as started:
        yield started


@pytest.fixture
def containers(engine: DockerEngine) -> Iterator[Containers]:
    """Containers of the engine, removed at the end of the test."""
    with Containers(engine) as started:
        yield started


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as started:
        yield started


@pytest.fixture(params=[3, 2], ids=["etcd3", "etcd2"])
def version(request: pytest.FixtureRequest) -> int:
    """The etcd API in use."""
    number: int = request.param
    return number


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"hello {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def backend() -> Iterator[str]:
    """The address of a small HTTP server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
