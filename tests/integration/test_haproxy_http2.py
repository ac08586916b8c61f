"""HTTP/2 clients: the same rules hold, and nothing of a frame becomes another request of HTTP/1.1."""

from collections.abc import Iterator

import pytest

from tests.lab.edge import Edge, raw_edge
from tests.lab.h2 import H2, Fields, h2_ask, h2_get
from tests.lab.haproxy import VERSIONS
from tests.lab.raw import RawAnswer


@pytest.fixture(scope="module", params=VERSIONS)
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with raw_edge(request.param, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


@pytest.fixture(params=["common", "host_port"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("fields", "line", "host"),
    [
        (h2_get(path="/x?y"), "GET /x?y HTTP/1.1", ["web.local"]),
        (h2_get(path="/web/x?y", authority="any.domain"), "GET /x?y HTTP/1.1", ["any.domain"]),
        (h2_get(("host", "web.local"), path="/x", authority=None), "GET /x HTTP/1.1", ["web.local"]),
        # neither says a host, as HTTP/1.0 may
        (h2_get(path="/web/x", authority=None), "GET /x HTTP/1.1", []),
        # :authority is the host, whatever Host says
        (h2_get(("host", "kept.local"), path="/x"), "GET /x HTTP/1.1", ["web.local"]),
        # the path is not altered for a service that the host names
        (h2_get(path="/web/..%2f%zz"), "GET /web/..%2f%zz HTTP/1.1", ["web.local"]),
    ],
)
def test_a_request_finds_its_service(edge: Edge, fields: Fields, line: str, host: list[str]) -> None:
    answer = h2_ask(edge.doors["common"], fields)
    assert answer.request_line == line
    assert answer.seen("Host") == host
    assert answer.seen("X-Forwarded-For") == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/web/../x", 400),
        ("/web/%2e%2e/x", 400),
        ("/web/..%5cx", 400),
        ("/web/\xc0\xae./x", 400),
        ("/web/%00", 400),
        ("/web/%", 400),
        ("//web/x", 404),
        ("/./web/x", 404),
        ("/web%2fx", 404),
        # Refused as HTTP/2, before any rule.
        ("/web/x\0", 0),
        ("/web/x y", 0),
        ("/web/x#y", 0),
        ("/web/x HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6", 0),
        ("web/x", 0),
        ("", 0),
        ("http://web.local/x", 0),
    ],
)
def test_a_path_made_to_be_misread_is_refused(edge: Edge, path: str, status: int) -> None:
    before = edge.reached
    assert h2_ask(edge.doors["common"], h2_get(path=path, authority="any.domain")).status == status
    assert edge.reached == before


@pytest.mark.parametrize(
    "fields",
    [
        *(
            h2_get(authority=authority)
            for authority in (
                *("web.local@evil", "web.local/x", "web.local:81:82", "web.local, kept.local", "web local"),
                *("web.local\0", "web.local\r\nX-Forwarded-For: 6.6.6.6", "[::1", "web." + "a" * 300),
            )
        ),
        h2_get(method="GET /evil"),
        h2_get(method="GET\r\nX:"),
        [(":method", "GET"), (":scheme", "http://evil/?"), (":path", "/x"), (":authority", "web.local")],
        [(":method", "GET"), (":path", "/x"), (":authority", "web.local")],
        [*h2_get(), (":path", "/y")],
        [*h2_get(), (":authority", "kept.local")],
        [("x", "y"), *h2_get()],
        # headers of a connection, which HTTP/2 has none of, and texts that would end a line of HTTP/1.1
        *(
            h2_get((name, value))
            for name, value in (
                *(("connection", "x-forwarded-for"), ("transfer-encoding", "chunked"), ("upgrade", "h2c")),
                *(("proxy-connection", "x"), ("keep-alive", "5"), ("te", "gzip")),
                *(("x", "y\r\nX-Forwarded-For: 6.6.6.6"), ("x", "y\nz"), ("x", "y\0")),
                *(("x: y\r\nz", "z"), ("x:", "y"), ("x y", "z"), ("X-Upper", "y"), ("", "y")),
            )
        ),
    ],
    ids=str,
)
def test_a_malformed_request_is_refused(edge: Edge, door: str, fields: Fields) -> None:
    before = edge.reached
    assert h2_ask(edge.doors[door], fields).status in (0, 400)
    assert edge.reached == before


@pytest.mark.parametrize("lengths", [("3",), ("30",), ("5", "6"), ("5, 6",), ("+5",), ("",)])
def test_a_body_of_another_length_than_told_is_refused(
    edge: Edge, door: str, lengths: tuple[str, ...]
) -> None:
    fields = h2_get(*(("content-length", length) for length in lengths), method="POST")
    assert h2_ask(edge.doors[door], fields, b"hello").status in (0, 400)
    # What reached the backend of it, if anything, was not taken for a whole request and another one.
    assert h2_ask(edge.doors[door], h2_get(path="/next")).request_line == "GET /next HTTP/1.1"


def test_headers_are_the_edges_word(edge: Edge, door: str) -> None:
    names = ("x-forwarded-for", "x_forwarded_for", "forwarded", "x-real-ip", "x-original-url", "proxy", "x.y")
    answer = h2_ask(edge.doors[door], h2_get(*((name, "6.6.6.6") for name in names), ("te", "trailers")))
    seen = {name: answer.seen(name) for name in names}
    assert seen == {name: [] for name in names} | {
        "x-forwarded-for": ["127.0.0.1"],
        "x-real-ip": ["127.0.0.1"],
    }
    assert answer.seen("TE") == ["trailers"]


def test_there_is_no_tunnel(edge: Edge, door: str) -> None:
    before = edge.reached
    assert h2_ask(edge.doors[door], [(":method", "CONNECT"), (":authority", "web.local:80")]).status == 501
    assert h2_ask(edge.doors[door], h2_get(method="TRACE")).status == 501
    assert edge.reached == before


def test_a_websocket_leads_through(edge: Edge, door: str) -> None:
    """RFC 8441: CONNECT with a protocol, which is an upgrade for a backend of HTTP/1.1."""
    with H2(edge.doors[door]) as connection:
        fields = h2_get(("sec-websocket-version", "13"), method="CONNECT", path="/chat")
        connection.send([*fields[:1], (":protocol", "websocket"), *fields[1:]], ends=False)
        assert connection.next_status() == 200
        connection.send_data(b"hello")
        assert connection.next_data() == b"HELLO"
    seen = RawAnswer(200, body=edge.web.requests[-1])
    assert seen.request_line == "GET /chat HTTP/1.1"
    assert (seen.seen("Connection"), seen.seen("Upgrade")) == (["upgrade"], ["websocket"])
    assert seen.seen("X-Forwarded-For") == ["127.0.0.1"]
