"""Which request reaches which service, as a real HAProxy routes them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from discovery.haproxy.apply import HAProxy
from tests.lab.haproxy import (
    VERSIONS,
    Answer,
    echo,
    fetch,
    free_port,
    front_port,
    haproxy_binary,
    running,
    service,
    settings,
)


@dataclass
class Edge:
    proxy: HAProxy
    port: int
    host_port: int
    empty_port: int

    def fetch(self, target: str = "/", host: str | None = "any.domain", **more: object) -> Answer:
        return fetch(self.port, target, host, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=VERSIONS)
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    binary = haproxy_binary(request.param)
    with ExitStack() as stack:
        web, api, ten, kept = (stack.enter_context(echo(name)) for name in ("web", "api", "ten", "kept"))
        host_port, empty_port = free_port(), free_port()
        of = settings(tmp_path_factory.mktemp("edge"), binary)
        services = (
            service("web", web, host_port=host_port),
            service("api", api),
            service("10", ten),
            service("kept", kept, options={"path": "keep"}),
            service("empty"),
            service("nobody", host_port=empty_port),
            service("down", free_port()),
            service("db", web, scheme="tcp"),
        )
        proxy = stack.enter_context(running(of, *services))
        yield Edge(proxy, front_port(of), host_port, empty_port)


@pytest.mark.parametrize(
    ("host", "target", "server", "path"),
    [
        # the first label of Host, in any case, with or without port and trailing dot
        ("web.any.domain", "/", "web", "/"),
        ("web.local", "/a/b?c=d&e", "web", "/a/b?c=d&e"),
        ("web", "/", "web", "/"),
        ("WEB.Any.Domain", "/", "web", "/"),
        ("web.any.domain:8080", "/", "web", "/"),
        ("web:8080", "/", "web", "/"),
        ("web.", "/", "web", "/"),
        ("web.local.:80", "/", "web", "/"),
        # Host first, and then the path is left alone
        ("web.local", "/api/x", "web", "/api/x"),
        # else the first path segment, taken off
        ("any.domain", "/api/a?b", "api", "/a?b"),
        ("any.domain", "/api", "api", "/"),
        ("any.domain", "/api/", "api", "/"),
        ("any.domain", "/api?q=1", "api", "/?q=1"),
        ("any.domain", "/api/?q=1", "api", "/?q=1"),
        ("any.domain", "/api/web/x", "api", "/web/x"),
        ("any.domain", "/api//evil.example/x", "api", "/evil.example/x"),
        ("any.domain", "/api/a//b/", "api", "/a//b/"),
        ("any.domain", "/api/%2Fa%20b", "api", "/%2Fa%20b"),
        # a name is the same name in percent-encoding (RFC 3986, 6.2.2.2)
        ("any.domain", "/%61pi/x", "api", "/x"),
        (None, "/api/x", "api", "/x"),
        ("", "/api/x", "api", "/x"),
        # an address names no service
        ("10.0.0.1", "/api/x", "api", "/x"),
        ("10.0.0.1:80", "/api/x", "api", "/x"),
        ("[::1]", "/api/x", "api", "/x"),
        ("[::1]:8080", "/api/x", "api", "/x"),
        ("[10::1]", "/api/x", "api", "/x"),
        ("10.local", "/", "ten", "/"),
        # option path=keep
        ("any.domain", "/kept/a?b", "kept", "/kept/a?b"),
        ("kept.local", "/kept/a?b", "kept", "/kept/a?b"),
    ],
)
def test_reaches_the_service(edge: Edge, host: str | None, target: str, server: str, path: str) -> None:
    answer = edge.fetch(target, host) if host is not None else _http10(edge, target)
    assert (answer.seen["server"], answer.seen["path"]) == (server, path)


def _http10(edge: Edge, target: str) -> Answer:
    """HTTP/1.0 knows requests without Host."""
    with socket.create_connection(("127.0.0.1", edge.port), timeout=30) as connection:
        connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = text.partition("\r\n\r\n")
    return Answer(int(head.split()[1]), {}, body)


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("any.domain", "/"),
        ("any.domain", "/apisake"),
        ("any.domain", "/ap"),
        ("any.domain", "/x/api"),
        ("any.domain", "/API"),
        ("any.domain", "//api/x"),
        ("any.domain", "/db"),
        ("db.local", "/"),
        ("any.web.domain", "/"),
        ("websake.local", "/"),
        (".web", "/"),
        ("127.0.0.1", "/"),
        ("10.0.0.1", "/"),
    ],
)
def test_names_no_service(edge: Edge, host: str, target: str) -> None:
    answer = edge.fetch(target, host)
    assert answer.status == 404
    assert "no service" in answer.text


def test_the_404_page_names_what_was_asked_safely(edge: Edge) -> None:
    answer = edge.fetch("/<script>alert(1)</script>/x", "nope.local")
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert '"nope"' in answer.text
    assert "<" not in answer.text
    assert len(edge.fetch("/" + "x" * 5000).text) < 300


@pytest.mark.parametrize(
    ("host", "target", "name"),
    [("empty.local", "/", "empty"), ("any.domain", "/empty/x", "empty"), ("down.local", "/", "down")],
)
def test_a_known_service_without_a_live_instance_is_503(
    edge: Edge, host: str, target: str, name: str
) -> None:
    answer = edge.fetch(target, host)
    assert answer.status == 503
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert f"service {name} has no live instance" in answer.text


def test_a_host_port_without_a_live_instance_is_503(edge: Edge) -> None:
    answer = fetch(edge.empty_port, "/", "whatever")
    assert answer.status == 503
    assert "service nobody has no live instance" in answer.text


def test_a_host_port_leads_straight_to_its_service(edge: Edge) -> None:
    seen = fetch(edge.host_port, "/api/x?y", "api.local").seen
    assert (seen["server"], seen["path"]) == ("web", "/api/x?y")
    assert "x-forwarded-prefix" not in seen["headers"]


FORGED = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=6.6.6.6",
}


def test_forwarded_headers_are_the_edges_own_word(edge: Edge) -> None:
    for port in (edge.port, edge.host_port):
        headers = fetch(port, "/x", "web.local", headers=FORGED).seen["headers"]
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-forwarded-host"] == "web.local"
        assert "x-forwarded-prefix" not in headers
        assert "forwarded" not in headers


def test_a_stripped_prefix_is_told(edge: Edge) -> None:
    assert edge.fetch("/api/x", headers=FORGED).seen["headers"]["x-forwarded-prefix"] == "/api"
    assert "x-forwarded-prefix" not in edge.fetch("/kept/x", headers=FORGED).seen["headers"]
