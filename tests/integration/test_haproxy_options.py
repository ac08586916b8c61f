"""Every option, as a real HAProxy carries it out."""

import base64
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from discovery.options import parse_option
from tests.lab.backend_config import Edge, configuration, edge_of, section
from tests.lab.bare import bare
from tests.lab.haproxy import VERSIONS, echo, fetch, free_port, haproxy_binary, service, until
from tests.lab.need import need

HASHES = {
    "sha256": "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
    "sha512": (
        "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1"
    ),
    "bcrypt": "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
    "yescrypt": "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0",
}
AUTH = ",".join(f"{name}:{hashed}" for name, hashed in HASHES.items())
HEADERS = 'X-A: it\'s "100%"  of %[src], $HOME \\n|X-B: #1'

OPTIONS_OF = {
    "plain": {},
    "headed": {"request_headers": HEADERS, "response_headers": HEADERS},
    "allowed": {"allow": ",".join(["127.0.0.0/8", "::1", *(f"10.{n}.0.0/16" for n in range(100))])},
    "refused": {"allow": "10.0.0.0/8", "auth": AUTH},
    "nobody": {"allow": "nobody"},
    "noauth": {"auth": "nobody"},
    "locked": {"auth": AUTH, "request_headers": "X-A: 1"},
    "source": {"balance": "source"},
    "uri": {"balance": "uri"},
    "random": {"balance": "random", "maxconn": "7"},
    "leastconn": {"balance": "leastconn"},
    "sticky": {"sticky": "cookie"},
    "checked": {"check": "http:/it's?a=$HOME", "check_rise": "1", "check_fall": "1"},
    "unchecked": {"check": "none"},
    "reused": {"check": "none"},
    "impatient": {"timeout_server": "200ms", "retries": "0"},
    "timed": {"timeout_connect": "1s", "timeout_tunnel": "5m", "check_timeout": "1s", "check_interval": "3s"},
    "tls": {"protocol": "https", "check": "http:/"},
    "h2": {"protocol": "h2", "check": "http:/"},
    "proxied1": {"proxy_protocol": "v1", "check": "http:/"},
    "proxied2": {"proxy_protocol": "v2", "protocol": "https", "check": "http:/"},
}
TCP = {
    "tcpin": {"allow": "127.0.0.1"},
    "tcpout": {"allow": "10.0.0.0/8"},
    "tcpauth": {"auth": AUTH},
    "tcpopts": {
        "check": "http:/",
        "balance": "source",
        "timeout_tunnel": "1h",
        "maxconn": "3",
        "retries": "1",
    },
}
# What stands behind, on the same machine: the words of a HAProxy's bind line.
BEHIND = {"tls": "ssl crt {pem} alpn h2,http/1.1", "h2": "proto h2", "proxied1": "accept-proxy"}
BEHIND["proxied2"] = "accept-proxy ssl crt {pem}"
TELL = (
    "http-request return status 200 content-type application/json lf-string "
    """'{{"sni":"%[ssl_fc_sni]","tls":"%[ssl_fc]","version":"%[req.ver]","to":"%[dst_port]","path":"%[path]"}}'"""
)


@contextmanager
def behind(directory: Path, binary: str) -> Iterator[dict[str, int]]:
    """A HAProxy that tells how it was asked, on one port for each way to be spoken to."""
    directory.mkdir()
    pem = directory / "local.pem"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=x", "-keyout", str(pem), "-out", str(directory / "c")]
    subprocess.run(command, check=True, capture_output=True)
    pem.write_text(pem.read_text() + (directory / "c").read_text())
    ports = {name: free_port() for name in BEHIND}
    text = "".join(
        f"frontend {name}\n    bind 127.0.0.1:{ports[name]} {words.format(pem=pem)}\n    {TELL.format()}\n"
        for name, words in BEHIND.items()
    )
    with bare(binary, directory, text):
        yield ports


@pytest.fixture(scope="module", params=VERSIONS)
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    binary = haproxy_binary(request.param)
    directory = tmp_path_factory.mktemp("options")
    with ExitStack() as stack:
        one, two = stack.enter_context(echo("one")), stack.enter_context(echo("two"))
        ports = stack.enter_context(behind(directory / "behind", binary))
        sections = []
        for name, options in OPTIONS_OF.items():
            to = (ports[name],) if name in ports else (one, two)
            options = {option: parse_option(option, text) for option, text in options.items()}
            sections.append(section(service(name, *to, options=options)))
        tcp_ports = {name: free_port() for name in TCP}
        for name, options in TCP.items():
            sections.append(section(service(name, one, scheme="tcp", options=options)))
        port = free_port()
        text = configuration(port, sections, tcp_ports)
        haproxy = stack.enter_context(bare(binary, directory, text))
        yield Edge(haproxy, port, tcp_ports, one, two)


# ---- requests and responses -------------------------------------------------------------------------


def test_headers_are_set_exactly(edge: Edge) -> None:
    answer = edge.fetch("headed", headers={"X-B": "the client's"})
    expected = {"x-a": 'it\'s "100%"  of %[src], $HOME \\n', "x-b": "#1"}
    assert {name: answer.seen["headers"][name] for name in expected} == expected
    assert {name: answer.headers[name] for name in expected} == expected


def test_allow_lets_in_only_its_networks(edge: Edge) -> None:
    assert edge.fetch("allowed").status == 200
    answer = edge.fetch("refused", headers={"Authorization": basic("sha512")})
    assert answer.status == 403
    assert "service refused is not for this client" in answer.text
    assert edge.fetch("nobody").status == edge.fetch("noauth").status == 403


def basic(user: str, password: str = "secret") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("user", HASHES)
def test_every_kind_of_hash_is_verified(edge: Edge, user: str) -> None:
    assert edge.fetch("locked", headers={"Authorization": basic(user)}).status == 200
    assert edge.fetch("locked", headers={"Authorization": basic(user, "Secret")}).status == 401


def test_auth_asks_who_it_is(edge: Edge) -> None:
    answer = edge.fetch("locked")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="locked"'
    assert edge.fetch("locked", headers={"Authorization": basic("nobody")}).status == 401


@pytest.mark.parametrize(
    ("name", "served"), [("tcpin", True), ("tcpopts", True), ("tcpout", False), ("tcpauth", False)]
)
def test_tcp_clients_are_let_in_or_cut_off(edge: Edge, name: str, served: bool) -> None:
    with socket.create_connection(("127.0.0.1", edge.tcp_ports[name]), timeout=20) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = connection.recv(100)
        except ConnectionError:
            answer = b""
    assert bool(answer) == served


# ---- the choice of an instance ----------------------------------------------------------------------


def test_source_and_uri_stay_with_one_instance(edge: Edge) -> None:
    for name in ("source", "uri"):
        assert len({edge.fetch(name, "/same").seen["server"] for _ in range(8)}) == 1
    assert len({edge.fetch("uri", f"/{n}").seen["server"] for n in range(40)}) == 2


@pytest.mark.parametrize("name", ["plain", "random", "leastconn"])
def test_the_others_use_all(edge: Edge, name: str) -> None:
    assert {edge.fetch(name).seen["server"] for _ in range(40)} == {"one", "two"}


def visit(edge: Edge, cookie: str | None = None) -> tuple[str, str]:
    """The instance and, if one was given, the cookie."""
    answer = edge.fetch("sticky", headers={"Cookie": f"discovery_sticky={cookie}"} if cookie else {})
    given = answer.headers.get("set-cookie", "").partition(";")[0].partition("=")[2]
    assert "discovery_sticky" not in answer.seen["headers"].get("cookie", "")
    return answer.seen["server"], given


def test_sticky_clients_stay_also_with_what_comes_and_moves_at_runtime(edge: Edge) -> None:
    cookies = dict(visit(edge) for _ in range(4))
    assert cookies.keys() == {"one", "two"}
    assert all(cookies.values())
    assert {visit(edge, cookies["two"]) for _ in range(4)} == {("two", "")}
    each = section(service("sticky", options={"sticky": "cookie"})).directives
    with echo("three") as three:
        ask = edge.haproxy.ask
        added = ask(f"add server service:sticky/s3 127.0.0.1:{three} {each.server}")
        assert "New server registered" in added
        assert not ask(f"{each.after_add} service:sticky").strip()
        assert not ask("enable server service:sticky/s3").strip()
        more = dict(visit(edge) for _ in range(6))
        assert more.keys() == {"one", "two", "three"}
        assert more["two"] == cookies["two"]
        assert {visit(edge, more["three"]) for _ in range(6)} == {("three", "")}
        # A slot that gets another address answers to that address's cookie.
        ask("set server service:sticky/s3 state maint")
        assert "changed" in ask(f"set server service:sticky/s1 addr 127.0.0.1 port {three}")
        assert {visit(edge, more["three"]) for _ in range(6)} == {("three", "")}
        ask(f"set server service:sticky/s1 addr 127.0.0.1 port {edge.one}")


# ---- how instances are spoken to --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tls", {"tls": "1", "version": "1.1", "sni": "tls.local"}),
        ("h2", {"tls": "0", "version": "2.0", "sni": ""}),
        ("proxied1", {"tls": "0", "version": "1.1", "sni": ""}),
        ("proxied2", {"tls": "1", "version": "1.1", "sni": "proxied2.local"}),
    ],
)
def test_instances_are_spoken_to_as_they_ask_and_so_are_those_added_at_runtime(
    edge: Edge, name: str, expected: dict[str, str]
) -> None:
    until(lambda: state(edge, name, "s1") == "UP", f"{name} is up")
    seen = json.loads(edge.fetch(name, "/x").text)
    assert {key: seen[key] for key in expected} == expected
    if name.startswith("proxied"):
        # The PROXY header tells the port that the client connected to.
        assert seen["to"] == str(edge.port)
    each = section(service(name, options=OPTIONS_OF[name])).directives
    address = edge.servers(name)["s1"]["addr"]
    assert "New server" in edge.haproxy.ask(f"add server service:{name}/s9 {address} {each.server}")
    edge.haproxy.ask(f"enable health service:{name}/s9")
    edge.haproxy.ask(f"enable server service:{name}/s9")
    edge.haproxy.ask(f"set server service:{name}/s1 state maint")
    # L7OK comes only from a check that spoke as it should.
    until(lambda: edge.servers(name)["s9"]["check_status"] == "L7OK", f"{name}/s9 passes its check")
    seen = json.loads(edge.fetch(name, "/x").text)
    assert {key: seen[key] for key in expected} == expected


def test_an_address_or_a_final_dot_is_no_sni(edge: Edge) -> None:
    expected = {
        "tls.local.:80": "tls.local",
        "TLS": "tls",
        "127.0.0.1:80": "tls",
        "[::1]:80": "tls",
        "": "tls",
    }
    for host, sni in expected.items():
        answer = fetch(edge.port, "/", host, headers={"X-Service": "tls"})
        assert json.loads(answer.text)["sni"] == sni, host


def state(edge: Edge, name: str, server: str) -> str:
    return edge.servers(name)[server]["status"]


def test_connections_to_what_was_added_at_runtime_are_used_again(edge: Edge) -> None:
    each = section(service("reused", options=OPTIONS_OF["reused"])).directives
    added = f"add server service:reused/s9 127.0.0.1:{edge.one} {each.server}"
    assert "New server" in edge.haproxy.ask(added)
    edge.haproxy.ask("enable server service:reused/s9")
    for name in ("s1", "s2"):
        edge.haproxy.ask(f"set server service:reused/{name} state maint")
    client = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
    for _ in range(5):
        client.request("GET", "/", headers={"Host": "reused"})
        assert client.getresponse().read()
    client.close()
    counted = edge.servers("reused")["s9"]
    assert (counted["connect"], counted["reuse"]) == ("1", "4")


# ---- checks, bounds ---------------------------------------------------------------------------------


def test_checks_are_made_as_asked(edge: Edge) -> None:
    until(lambda: edge.servers("checked")["s1"]["check_status"] == "L7OK", "the path is checked")
    until(lambda: edge.servers("plain")["s1"]["check_status"] == "L4OK", "a connection is a check")
    until(lambda: edge.servers("tcpopts")["s1"]["check_status"] == "L7OK", "a path behind tcp is checked")
    assert state(edge, "unchecked", "s1") == "no check"
    timed = edge.servers("checked")["s1"]
    assert (timed["check_rise"], timed["check_fall"]) == ("1", "1")
    assert edge.servers("random")["s1"]["slim"] == "7"


def test_a_silent_instance_is_given_up_in_its_own_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"timeout_server": "200ms", "check": "none"}
        each = section(service("quiet", silent.getsockname()[1], options=options))
        with edge_of(tmp_path, "2.6", [each]) as edge:
            assert edge.fetch("quiet").status == 504


def test_retries_are_counted(tmp_path: Path) -> None:
    options = {"check": "none", "timeout_connect": "100ms"}
    sections = [
        section(service(f"r{n}", free_port(), options={**options, "retries": str(n)})) for n in (0, 2)
    ]
    with edge_of(tmp_path, "2.6", sections) as edge:
        for number in (0, 2):
            assert edge.fetch(f"r{number}").status == 503
            assert edge.servers(f"r{number}")["BACKEND"]["wretr"] == str(number)


def test_a_check_expects_2xx_or_3xx_of_its_own_host(tmp_path: Path) -> None:
    behind_port = free_port()
    rules = (
        "http-request return status 302 hdr location / if { path /moved } { req.hdr(host) -m str moved }\n"
        "    http-request return status 204 if { url -m str /it's?a=$HOME } { req.hdr(host) -m str exact }\n"
        "    http-request return status 500\n"
    ).replace("/it's?a=$HOME", '"/it\'s?a=\\$HOME"')
    paths = {"moved": "/moved", "exact": "/it's?a=$HOME", "failing": "/other"}
    sections = [
        section(service(name, behind_port, options={"check": f"http:{path}", "check_fall": "1"}))
        for name, path in paths.items()
    ]
    text = f"frontend behind from edge\n    bind 127.0.0.1:{behind_port}\n    {rules}"
    with edge_of(tmp_path, "2.6", sections, text) as edge:
        until(lambda: edge.servers("failing")["s1"]["check_status"] == "L7STS", "it fails")
        for name in ("moved", "exact"):
            until(partial(passes_its_check, edge, name), f"{name} is up")


def passes_its_check(edge: Edge, name: str) -> bool:
    return edge.servers(name)["s1"]["check_status"] == "L7OK"
