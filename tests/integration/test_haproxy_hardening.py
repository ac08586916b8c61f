"""What a hostile client cannot do to the edge and the services behind it, byte by byte; on a real HAProxy."""

import select
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.lab.edge import Edge, raw_edge
from tests.lab.h2 import CONTINUATION, HEADERS, PING, PREFACE, SETTINGS, fields_block, frame, h2_get
from tests.lab.haproxy import PATIENCE_SECONDS, TEMPLATES, VERSIONS, free_port
from tests.lab.raw import RawAnswer, answer_on, connect, request
from tests.lab.tls import make


@pytest.fixture(scope="module", params=VERSIONS)
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with raw_edge(request.param, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


@pytest.fixture(params=["common", "host_port"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "host",
    [
        "web.local@evil",
        "web.local, kept.local",
        "web.local kept.local",
        "web.local/x",
        "web.local?x",
        "web.local#x",
        "web.local\\x",
        "web.local%00",
        "web.local:80:80",
        "web.local:80@evil",
        "web.local:x",
        "web.local:123456",
        "web.local\0",
        "w\xebb.local",
        "[::1",
        "[::1]x",
        "[fe80::1%25eth0]",
        "*.local",
        '"web.local"',
        "web." + "a" * 300,
    ],
)
def test_a_host_that_is_none_is_refused(edge: Edge, door: str, host: str) -> None:
    edge.refuses(request(host=host), door)


@pytest.mark.parametrize(
    "data",
    [
        request(host=None),
        request("Host: kept.local"),
        request("Host: kept.local", version="1.0"),
        request("host:\tkept.local", host=""),
    ],
)
def test_there_is_one_host(edge: Edge, door: str, data: str) -> None:
    edge.refuses(data, door)


@pytest.mark.parametrize("host", ["", "[::1]", "[::1]:80", "10.0.0.1:8080", "web_1.a-b.example", ":80"])
def test_a_host_that_names_no_service_is_fine_all_the_same(edge: Edge, door: str, host: str) -> None:
    answer = edge.ask(request(target="/web/x", host=host), door)
    assert answer.seen("Host") == [host]
    assert answer.seen("X-Forwarded-Host") == ([host] if host else [])


def test_http_1_0_needs_no_host(edge: Edge, door: str) -> None:
    answer = edge.ask(request(target="/web/x", host=None, version="1.0"), door)
    assert answer.seen("X-Forwarded-For") == ["127.0.0.1"]
    assert answer.seen("Host") == answer.seen("X-Forwarded-Host") == []


@pytest.mark.parametrize("version", ["1.2", "2.0", "3.0"])
def test_a_version_that_is_none_of_this_connection_is_refused(edge: Edge, door: str, version: str) -> None:
    # An absolute target, for which every rule has to hold as well.
    edge.refuses(request(target="http://web.local/x", version=version), door, status=505)


# ---- headers ----------------------------------------------------------------------------------------

OURS = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Real-IP")


@pytest.mark.parametrize("lines", [(), *((f"{name}: 6.6.6.6",) for name in OURS)])
def test_where_a_request_came_from_is_the_edges_word(edge: Edge, door: str, lines: tuple[str, ...]) -> None:
    connection = "Connection: close, " + ", ".join(OURS)
    answer = edge.ask(request(*lines, *lines, connection), door)
    wanted = ("127.0.0.1", "web.local", str(edge.doors[door]), "http", "127.0.0.1")
    assert tuple(answer.seen(name) for name in OURS) == tuple([value] for value in wanted)
    assert answer.seen("Connection") == []


@pytest.mark.parametrize(
    "name",
    [
        # other names by which backends know where a request came from, or for which path it was
        *("Forwarded", "X-Forwarded", "X-Forwarded-Prefix", "X-Forwarded-Server", "X-Forwarded-Ssl"),
        *("Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP"),
        *("X-Original-URL", "X-Original-URI", "X-Original-Host", "X-Rewrite-URL"),
        # the client's connection, which ends here
        *("Keep-Alive", "Proxy", "Proxy-Connection", "Proxy-Authorization", "HTTP2-Settings", "Upgrade"),
        # CGI and WSGI read these as others of the same letters
        *("X_Forwarded_For", "X-Forwarded_For", "X_Real-IP", "Content_Length", "Transfer_Encoding", "_"),
        *("X.Forwarded.For", "X!Forwarded", "X~Y", "X'Y"),
    ],
)
def test_a_header_that_is_not_the_clients_to_say_is_dropped(edge: Edge, door: str, name: str) -> None:
    for spelled in (name, name.upper(), name.lower()):
        answer = edge.ask(request(f"{spelled}: 6", f"{spelled}: 7", "X-Kept: 1"), door)
        assert answer.seen(name) == []
        assert answer.seen("X-Kept") == ["1"]


@pytest.mark.parametrize(
    ("te", "seen"),
    [("trailers", ["trailers"]), ("gzip, trailers", ["trailers"]), ("gzip", []), ("trailers;q=0", [])],
)
def test_of_te_only_trailers_is_left(edge: Edge, door: str, te: str, seen: list[str]) -> None:
    assert edge.ask(request("Connection: TE", f"TE: {te}"), door).seen("TE") == seen


def test_what_belongs_to_the_backends_connection_ends_at_the_edge(edge: Edge) -> None:
    with connect(edge.doors["common"]) as connection:
        for _ in range(2):
            connection.sendall(request(host="hops.local").encode())
            answer = answer_on(connection)
            assert answer.header("X-Frame-Options") == ["DENY"]
            dropped = ("Connection", "Keep-Alive", "Upgrade", "Proxy-Authenticate", "Proxy-Connection")
            assert [answer.header(name) for name in dropped] == [[]] * 5


# ---- upgrades ---------------------------------------------------------------------------------------

WEBSOCKET = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade", *WEBSOCKET),
        ("Connection: keep-alive, upgrade, X-Forwarded-For", *WEBSOCKET),
        ("Connection: keep-alive", "Connection: UPGRADE", *WEBSOCKET),
        ("Connection: Upgrade", "Upgrade: other/1"),
    ],
)
def test_an_upgrade_leads_through(edge: Edge, door: str, lines: tuple[str, ...]) -> None:
    with connect(edge.doors[door]) as connection:
        connection.sendall(request(*lines, target="/web/chat").encode())
        answer = answer_on(connection)
        assert (answer.status, answer.header("Connection")) == (101, ["Upgrade"])
        seen = RawAnswer(200, body=edge.web.requests[-1])
        assert seen.seen("Connection") == ["upgrade"]
        assert seen.seen("X-Forwarded-For") == ["127.0.0.1"]
        for text in (b"\x81\x05hello", b"more"):
            connection.sendall(text)
            assert connection.recv(100) == text.upper()


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: Upgrade", "Upgrade: H2C"),
        ("Connection: Upgrade", "Upgrade: h2"),
        ("Connection: Upgrade", "Upgrade: HTTP/2.0"),
        ("Connection: Upgrade", "Upgrade: TLS/1.2"),
        ("Connection: Upgrade", "Upgrade: other", "Upgrade: another"),
        ("Connection: Upgrade",),
        ("Connection: close", *WEBSOCKET),
        WEBSOCKET,
    ],
)
def test_what_is_no_upgrade_is_a_plain_request(edge: Edge, door: str, lines: tuple[str, ...]) -> None:
    answer = edge.ask(request(*lines), door)
    assert answer.seen("Upgrade") == answer.seen("Connection") == answer.seen("HTTP2-Settings") == []


def test_http_1_0_has_no_upgrade(edge: Edge, door: str) -> None:
    answer = edge.ask(request("Connection: Upgrade", *WEBSOCKET, version="1.0"), door)
    assert answer.seen("Upgrade") == []


def test_no_upgrade_leads_to_http_2(edge: Edge, door: str) -> None:
    """HAProxy 3.0 takes h2c out of a list by itself."""
    lines = ("Connection: Upgrade", "Upgrade: other, h2c")
    with connect(edge.doors[door]) as connection:
        connection.sendall(request(*lines).encode())
        assert answer_on(connection).status in (101, 200)
    assert b"h2c" not in edge.web.requests[-1].lower()


# ---- framing ----------------------------------------------------------------------------------------

POST = "POST / HTTP/1.1\r\nHost: web.local\r\n"
CHUNKED = POST + "Transfer-Encoding: chunked\r\n\r\n"
SECOND = "GET /second HTTP/1.1\r\nHost: web.local\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        *(
            POST + f"Content-Length: {length}\r\n\r\nhello"
            for length in ("5, 6", "+5", "-5", "0x5", "5;", "")
        ),
        POST + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + f"Content-Length: {2**64 + 5}\r\n\r\nhello",
        POST + "Content-Length : 5\r\n\r\nhello",
        *(
            POST + f"Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"
            for coding in (
                *("xchunked", "identity", "chunked, identity", "chunked, chunked", '"chunked"', "CHUNKED"),
                *("\x0bchunked", "chunked\0", "chunked;x", "", "chunked\r\nTransfer-Encoding: chunked"),
            )
        ),
        POST + "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
        POST + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        CHUNKED.replace("1.1", "1.0") + "0\r\n\r\n",
        CHUNKED.replace("1.1", "1.0").replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n") + "0\r\n\r\n",
        *(
            CHUNKED + f"{chunk}\r\n0\r\n\r\n"
            for chunk in ("0x5\r\nhello", "-1\r\nhello", "g\r\nhello", "5\r\nhelloXX")
        ),
        CHUNKED + "1ffffffff00000005\r\nhello\r\n0\r\n\r\n",
        CHUNKED + "5;a=\nb\r\nhello\r\n0\r\n\r\n",
        POST + "X: a\rContent-Length: 5\r\n\r\nhello",
        POST + "X: a\0b\r\n\r\n",
        POST + "X\0: a\r\n\r\n",
        POST + "no colon\r\n\r\n",
        POST + ": no name\r\n\r\n",
        "POST / HTTP/1.1\r\n Host: web.local\r\n\r\n",
        "GET /\r\n\r\n",
        "PROXY TCP4 6.6.6.6 6.6.6.6 1 1\r\n" + SECOND,
    ],
)
def test_a_message_whose_end_could_be_disputed_is_refused(edge: Edge, door: str, data: str) -> None:
    edge.refuses(data, door)


def test_an_unknown_coding_is_refused(edge: Edge, door: str) -> None:
    edge.refuses(POST + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", door, status=422)


@pytest.mark.parametrize(
    ("data", "framing"),
    [
        # RFC 9112, 6.3: chunked overrides the length, which is not passed on, and the connection ends.
        (
            CHUNKED.replace("\r\n\r\n", f"\r\nContent-Length: {5 + len(SECOND)}\r\n\r\n")
            + "0\r\n\r\n"
            + SECOND,
            "te",
        ),
        (POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND, "te"),
        # What another reader would not take for a header is none, or one and the same for both.
        (
            POST
            + "Transfer_Encoding: chunked\r\nContent-Length: 5\r\nConnection: close\r\n\r\n0\r\n\r\n"
            + SECOND,
            "cl",
        ),
        (POST + "Content-Length: 5, 5\r\nConnection: close\r\n\r\nhello" + SECOND, "cl"),
        (POST + "Transfer-Encoding:\r\n chunked\r\nConnection: close\r\n\r\n0\r\n\r\n" + SECOND, "te"),
        (
            SECOND.replace("\r\n", "\n").replace("\n\n", "\nContent-Length: 5\nConnection: close\n\nhello"),
            "cl",
        ),
    ],
)
def test_a_message_reaches_the_backend_with_one_end(edge: Edge, door: str, data: str, framing: str) -> None:
    before = len(edge.web.requests)
    with connect(edge.doors[door]) as connection:
        connection.sendall(data.encode())
        seen = answer_on(connection)
        assert connection.recv(1) == b""
    assert len(edge.web.requests) == before + 1
    assert (len(seen.seen("Transfer-Encoding")), len(seen.seen("Content-Length"))) == (
        (1, 0) if framing == "te" else (0, 1)
    )


def test_a_body_is_no_request(edge: Edge, door: str) -> None:
    """Bodies of either framing, of requests that have none by custom too, and what follows them."""
    chunk = f"{len(SECOND):x};x=y\r\n{SECOND}\r\n0\r\n\r\n"
    framed = (f"Content-Length: {len(SECOND)}\r\n\r\n{SECOND}", f"Transfer-Encoding: chunked\r\n\r\n{chunk}")
    before = len(edge.web.requests)
    with connect(edge.doors[door]) as connection:
        for method in ("GET", "DELETE", "OPTIONS", "POST"):
            for body in framed:
                connection.sendall(f"{method} /first HTTP/1.1\r\nHost: web.local\r\n{body}".encode())
                assert answer_on(connection).request_line == f"{method} /first HTTP/1.1"
    assert len(edge.web.requests) == before + 8


# ---- too much, and too slow -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        request("X: " + "a" * 20_000),
        request("X: " + "a" * 500_000),
        request("a" * 20_000 + ": x"),
        request(*(f"X-{i}: a" for i in range(110))),
        request(*(f"X-{i}: a" for i in range(100_000))),
        request(target="/" + "a" * 500_000),
        request(target="/web/" + "a" * 20_000, host="any.domain"),
        "A" * 100_000,
        "GET " * 100_000,
        "\r\n" * 100_000,
        "\0" * 100_000,
    ],
    ids=range(11),
)
def test_too_large_a_head_is_refused_and_nothing_is_harmed(edge: Edge, door: str, data: str) -> None:
    edge.refuses(data, door)
    assert edge.ask(request(), door).status == 200
    assert psutil.pid_exists(edge.pid or 0)


@pytest.mark.parametrize("size", range(15_000, 16_500, 100))
def test_a_head_that_only_just_fits_leaves_room_for_what_the_edge_adds(edge: Edge, size: int) -> None:
    answer = edge.ask(request("X: " + "a" * size, target="/web/x", host="any." + "d" * 200))
    assert answer.status in (200, 400)
    assert answer.status == 400 or answer.seen("X-Forwarded-Prefix") == ["/web"]


# Per case: which listener, what is sent at once, and what is sent again and again.
SLOW = {
    "nothing": ("http", b"", b""),
    "half a request": ("http", b"GET / HTTP/1.1\r\nHost: web.local\r\n", b""),
    "a header for ever": ("http", b"GET / HTTP/1.1\r\nHost: web.local\r\nX: ", b"X"),
    "headers for ever": ("http", b"GET / HTTP/1.1\r\nHost: web.local\r\n", b"X: a\r\n"),
    "empty lines for ever": ("http", b"", b"\r\n"),
    "half an HTTP/2 preface": ("http", PREFACE[:10], b""),
    "no HTTP/2 request": ("http", PREFACE + frame(SETTINGS, 0, 0, b""), b""),
    "HTTP/2 pings for ever": ("http", PREFACE + frame(SETTINGS, 0, 0, b""), frame(PING, 0, 0, b"12345678")),
    "HTTP/2 continuations for ever": (
        "http",
        PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 0, 1, fields_block(h2_get())),
        frame(CONTINUATION, 0, 1, fields_block([("x", "y")])),
    ),
    "no handshake": ("https", b"", b""),
    "a handshake for ever": ("https", b"\x16\x03\x01\x3f\x00\x01", b"\0"),
}


@pytest.fixture(scope="module", params=VERSIONS)
def impatient(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge whose times are short, the one for a request shorter than that for a client."""
    directory = tmp_path_factory.mktemp("impatient")
    own, certs = directory / "own", directory / "certs"
    own.mkdir()
    certs.mkdir()
    (certs / "any.pem").write_text(make("any.domain").whole)
    text = (TEMPLATES / "defaults.cfg.j2").read_text()
    for was, becomes in (("timeout http-request 10s", "500ms"), ("timeout client 50s", "1s")):
        assert was in text
        text = text.replace(was, f"{was.rpartition(' ')[0]} {becomes}")
    (own / "defaults.cfg.j2").write_text(text)
    more = {"templates": (own, TEMPLATES), "https": (f"127.0.0.1:{free_port()}",), "certs": certs}
    with raw_edge(request.param, directory / "state", **more) as edge:
        edge.doors["https"] = int(more["https"][0].rpartition(":")[2])
        yield edge


@pytest.mark.parametrize("case", SLOW)
def test_a_client_that_takes_its_time_is_dismissed(impatient: Edge, case: str) -> None:
    """The time runs from the first byte, however many follow, and nobody else waits meanwhile."""
    listener, at_once, drop = SLOW[case]
    reached = impatient.reached
    for door in ("https",) if listener == "https" else ("common", "host_port"):
        with connect(impatient.doors[door]) as slow:
            slow.sendall(at_once)
            assert impatient.ask(request()).status == 200
            reached += 1
            told = b""
            deadline = time.monotonic() + PATIENCE_SECONDS
            # What is dropped too late is answered with a reset.
            with suppress(ConnectionError):
                while time.monotonic() < deadline:
                    if select.select([slow], [], [], 0.05)[0]:
                        if not (more := slow.recv(4096)):
                            break
                        told += more
                    slow.sendall(drop)
            assert time.monotonic() < deadline
            assert told.startswith(b"HTTP/1.1 408 ") or "HTTP/2" in case or listener == "https"
    assert impatient.reached == reached
