"""Which request reaches which service, as a real HAProxy routes them."""

import json
import socket
import subprocess
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
from tests.lab.need import need
from tests.lab.raw import ask
from tests.lab.tls import make


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
            service("api", api, options={"hosts": "www.example.com,*.example.org,web.pinned.org,*.local"}),
            service("10", ten),
            service("kept", kept, options={"path": "keep", "redirect": "https"}),
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
        # a whole further host before the first label, that before a wildcard for one label
        ("www.example.com", "/web/x", "api", "/web/x"),
        ("WWW.Example.COM.:8080", "/", "api", "/"),
        ("web.pinned.org", "/", "api", "/"),
        ("web.example.org", "/", "web", "/"),
        ("any.example.org", "/", "api", "/"),
        ("any.local", "/", "api", "/"),
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
        # option path=keep; and without https nothing is redirected to it
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
        ("db.domain", "/"),
        ("example.com", "/"),
        ("x.www.example.com", "/"),
        ("example.org", "/"),
        ("a.b.example.org", "/"),
        (".example.org", "/"),
        ("local", "/"),
        ("any.web.domain", "/"),
        ("websake.domain", "/"),
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
    answer = edge.fetch("/<script>alert(1)</script>/x", "nope.domain")
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


# ---- https ------------------------------------------------------------------------------------------


@dataclass
class SecureEdge:
    http: int
    https: int
    host_port: int


@pytest.fixture(scope="module", params=VERSIONS)
def secure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureEdge]:
    binary = haproxy_binary(request.param)
    directory = tmp_path_factory.mktemp("secure")
    certs = directory / "certs"
    certs.mkdir()
    (certs / "any.pem").write_text(make("any.domain").whole)
    with ExitStack() as stack:
        shop, open_ = (stack.enter_context(echo(name)) for name in ("shop", "open"))
        https, host_port = free_port(), free_port()
        of = settings(directory / "state", binary, https=(f"127.0.0.1:{https}",), certs=certs)
        options = {"redirect": "https", "hosts": "www.example.com"}
        services = (service("shop", shop, host_port=host_port, options=options), service("open", open_))
        stack.enter_context(running(of, *services))
        yield SecureEdge(front_port(of), https, host_port)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("host", "target", "location"),
    [
        ("shop.local", "/a?b=c&d", "https://shop.local:{}/a?b=c&d"),
        ("shop.local:80", "/", "https://shop.local:{}/"),
        ("www.example.com", "/a", "https://www.example.com:{}/a"),
        ("any.domain", "/shop/a/b?c", "https://any.domain:{}/shop/a/b?c"),
        ("10.0.0.1:8080", "/shop", "https://10.0.0.1:{}/shop"),
        ("[::1]:8080", "/shop/", "https://[::1]:{}/shop/"),
        ("shop.local", "//evil.example/x", "https://shop.local:{}//evil.example/x"),
        ("shop.local", "http://shop.local/x?y", "https://shop.local:{}/x?y"),
    ],
)
def test_option_redirect_leads_to_https(
    secure: SecureEdge, method: str, host: str, target: str, location: str
) -> None:
    answer = fetch(secure.http, target, host, method)
    # 308 and not 301, which makes a GET of a POST.
    assert (answer.status, answer.headers["location"]) == (308, location.format(secure.https))


def test_what_cannot_be_redirected_is_refused(secure: SecureEdge) -> None:
    for target, version, host in (("/shop/x", "1.0", ""), ("*", "1.1", "Host: shop.local\r\n")):
        answer = ask(secure.http, f"OPTIONS {target} HTTP/{version}\r\n{host}\r\n")
        assert answer.status == 403
        assert b"service shop is served by https only" in answer.body


def test_only_what_asks_for_it_is_redirected(secure: SecureEdge) -> None:
    assert fetch(secure.http, "/", "open.local").seen["server"] == "open"
    assert fetch(secure.http, "/", "nope.local").status == 404
    assert fetch(secure.host_port, "/x", "shop.local").seen["path"] == "/x"
    refused = fetch(secure.http, "/shop/../x", "any.domain")
    assert (refused.status, refused.headers.get("location")) == (400, None)


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_what_is_asked_by_https_is_served(secure: SecureEdge, version: str) -> None:
    for host, path in (("www.example.com", "/x"), ("any.domain", "/shop/x")):
        to = f"{host}:{secure.https}:127.0.0.1"
        command = [
            need("curl"),
            "-ksS",
            f"--http{version}",
            "--resolve",
            to,
            "-w",
            "%{stderr}%{http_version}",
        ]
        run = subprocess.run(
            [*command, f"https://{host}:{secure.https}{path}"],
            capture_output=True,
            check=True,
            text=True,
            timeout=30,
        )
        seen = json.loads(run.stdout)
        assert (run.stderr, seen["path"], seen["server"]) == (version, "/x", "shop")
        assert seen["headers"]["x-forwarded-proto"] == "https"
        assert seen["headers"]["x-forwarded-port"] == str(secure.https)
