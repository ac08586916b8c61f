"""Which target of a request leads where, when it was made to be read in two ways; on a real HAProxy."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.edge import Edge, raw_edge
from tests.lab.haproxy import VERSIONS
from tests.lab.raw import request

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module", params=VERSIONS)
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with raw_edge(request.param, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


@pytest.fixture(params=["common", "host_port"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


LEADS_OUT = [
    "/..",
    "/../x",
    "/.",
    "/./x",
    "/a/../../x",
    "/%2e%2e/x",
    "/%2E%2e",
    "/.%2e/x",
    "/%2e/x",
    "/..%2fx",
    "/..%2Fx",
    "/%2e%2e%2fx",
    "/a%2f..%2f..%2fx",
    "/..\\x",
    "\\..\\x",
    "/..%5cx",
    "/%5c..%5Cx",
    "/a/..;/x",
    "/..;a=b/x",
    "/..%3bx",
    "/..%3fx",
    "/..%23x",
    "/%c0%ae%c0%ae/x",
    "/..%c0%afx",
    # what one decoder refuses, another may take for something else
    "/%",
    "/%2",
    "/%zz/%2e%2e/x",
    "/%2e%2e/x%",
    "/%2e%2e/%2x",
    "/x%00",
    "/%00/..",
]


@pytest.mark.parametrize("below", LEADS_OUT)
def test_a_path_that_may_lead_out_of_its_service_is_refused(edge: Edge, below: str) -> None:
    # What is right behind the name and no slash makes another name.
    named = 400 if below.startswith("/") else 404
    for name in ("web", "kept", "%77eb"):
        edge.refuses(request(target=f"/{name}{below}", host="any.domain"), status=named)


@pytest.mark.parametrize("below", [target for target in LEADS_OUT if target.startswith("/")])
def test_a_service_that_host_names_has_every_path(edge: Edge, below: str) -> None:
    for door in edge.doors:
        answer = edge.ask(request(target=f"/web{below}"), door)
        assert answer.request_line == f"GET /web{below} HTTP/1.1"


@pytest.mark.parametrize(
    "target",
    [
        "//web/x",
        "///web",
        "/./web",
        "/../web/x",
        "/x/../web",
        "/%2e/web",
        "/%2fweb",
        "/web%2fx",
        "/web%2f..%2fx",
        "/web%5cx",
        "/web\\x",
        "/web;a=b/x",
        "/web%20",
        "/web%2f",
        "/we%62%62",
        "/%2577eb",
    ],
)
def test_only_a_whole_first_segment_names_a_service(edge: Edge, target: str) -> None:
    edge.refuses(request(target=target, host="any.domain"), status=404)


def test_a_name_does_not_end_at_a_nul(edge: Edge) -> None:
    """HAProxy's maps look texts up to their first NUL."""
    edge.refuses(request(target="/web%00/x", host="any.domain"))
    edge.refuses(request(target="/web%00x", host="any.domain"))


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("/web//x", "/x"),
        ("/web///", "/"),
        ("/web/.well-known/x", "/.well-known/x"),
        ("/web/...", "/..."),
        ("/web/a..b/.c./d..", "/a..b/.c./d.."),
        ("/web/%2e%2eb", "/%2e%2eb"),
        ("/web/a%2Fb%5cc", "/a%2Fb%5cc"),
        ("/web/%2f%2fx", "/%2f%2fx"),
        ("/web/%252e%252e/x", "/%252e%252e/x"),
        ("/web/%C3%80%E2%82%AC", "/%C3%80%E2%82%AC"),
        ("/web/x?y=/../..&z=%zz%00", "/x?y=/../..&z=%zz%00"),
        ("/%77%65b/x", "/x"),
        ("/kept//x", "/kept//x"),
        ("/%6bept/x", "/%6bept/x"),
    ],
)
def test_what_leads_nowhere_else_is_passed_on_as_it_is(edge: Edge, target: str, seen: str) -> None:
    answer = edge.ask(request(target=target, host="any.domain"))
    assert answer.request_line == f"GET {seen} HTTP/1.1"
    assert answer.seen("X-Forwarded-Prefix") == (
        [] if seen.startswith("/kept") or "%6b" in seen else ["/web"]
    )


@pytest.mark.parametrize(
    ("target", "host", "seen"),
    [
        ("http://web.local/x?y", "web.local", "/x?y"),
        ("http://web.local:80/x", "web.local", "/x"),
        ("HTTPS://web.local/x", "web.local", "/x"),
        ("http://web.local", "web.local", "/"),
        ("http://any.domain/web/x", "any.domain", "/x"),
        ("http://any.domain//web/x", "any.domain", None),
        ("http://any.domain/web/../x", "any.domain", None),
        ("http://any.domain/http://web.local/x", "any.domain", None),
    ],
)
def test_an_absolute_target_is_read_as_its_path(edge: Edge, target: str, host: str, seen: str | None) -> None:
    answer = edge.ask(request(target=target, host=host))
    if seen is None:
        assert answer.status in (400, 404)
    else:
        assert answer.request_line == f"GET {seen} HTTP/1.1"
        assert answer.seen("Host") == [host]
        older = edge.ask(request(target=target, host=host, version="1.0"))
        assert older.request_line == f"GET {seen} HTTP/1.0"


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://web.local/x", "kept.local"),
        ("http://web.local@kept.local/x", "web.local"),
        ("http://web.local\\@kept.local/x", "web.local"),
        ("http:web.local/x", "web.local"),
        ("web.local:80", "web.local"),
        ("web/x", "web.local"),
        ("/x#y", "web.local"),
        ("/x\0y", "web.local"),
        ("/x\xff", "web.local"),
        ("/x\ty", "web.local"),
    ],
)
def test_a_target_that_is_none_or_contradicts_host_is_refused(
    edge: Edge, door: str, target: str, host: str
) -> None:
    edge.refuses(request(target=target, host=host), door)


def test_an_asterisk_is_for_options_of_a_whole_host(edge: Edge) -> None:
    answer = edge.ask("OPTIONS * HTTP/1.1\r\nHost: web.local\r\n\r\n")
    assert answer.request_line == "OPTIONS * HTTP/1.1"
    edge.refuses("OPTIONS * HTTP/1.1\r\nHost: any.domain\r\n\r\n", status=404)


@pytest.mark.parametrize("first", ["CONNECT web.local:80", "CONNECT 10.0.0.1:22", "TRACE /", "TRACE /web/x"])
def test_there_are_no_tunnels_and_no_echoes(edge: Edge, door: str, first: str) -> None:
    host = first.split()[1] if first.startswith("CONNECT") else "web.local"
    edge.refuses(f"{first} HTTP/1.1\r\nHost: {host}\r\n\r\n", door, status=501)


def documented() -> list[tuple[str, str, str]]:
    """Target, service or status, and path as the service sees it, from the table in the documentation."""
    table = (
        (DOCS / "routing.md").read_text().partition("<!-- paths -->")[2].partition("<!-- end of paths -->")[0]
    )
    rows = re.findall(r"^\| `(\S+)` \| (?:`(\w+)`: `(\S+)`|(\d+)) \|", table, re.MULTILINE)
    assert len(rows) == len(table.strip().splitlines()) - 2
    return [(target, service or status, seen) for target, service, seen, status in rows]


@pytest.mark.parametrize(("target", "outcome", "seen"), documented())
def test_the_documented_table_is_what_happens(edge: Edge, target: str, outcome: str, seen: str) -> None:
    data = request(target=target, host="any.domain")
    if outcome.isdigit():
        edge.refuses(data, status=int(outcome))
        return
    backend = {"web": edge.web, "kept": edge.kept}[outcome]
    before = len(backend.requests)
    assert edge.ask(data).request_line == f"GET {seen} HTTP/1.1"
    assert len(backend.requests) == before + 1
