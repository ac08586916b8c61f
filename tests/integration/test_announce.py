"""`announce`: an address, with a check if wanted."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from discovery.errors import ConfigError
from discovery.sources.announce import AnnounceSource
from discovery.sources.checker import Health
from tests.lab.agent import discovery_command
from tests.lab.wait import until

# ---- the source -------------------------------------------------------------------------------------


def test_without_a_check_it_is_registered() -> None:
    source = AnnounceSource("db", "[2001:DB8::5]:5432", node="n1", scheme="tcp", host_port=5432)
    (found,) = source.registrations()
    assert (found.service, found.instance.address) == ("db", "[2001:db8::5]:5432")
    assert found.instance.id == "n1:2001:db8::5:5432"
    assert (found.instance.attributes.scheme, found.instance.attributes.host_port) == ("tcp", 5432)
    assert not source.wait(0)


def test_drained_it_stays_registered_and_says_so() -> None:
    source = AnnounceSource("db", "10.0.0.5:5432", node="n1", scheme="tcp")
    (before,) = source.registrations()
    source.drain()
    assert source.wait(0)
    (after,) = source.registrations()
    assert not before.instance.attributes.draining
    attributes = replace(before.instance.attributes, draining=True)
    assert after == replace(before, instance=replace(before.instance, attributes=attributes))


@pytest.mark.parametrize(
    ("name", "address", "check", "reason"),
    [
        ("d b", "10.0.0.5:5432", None, "a name is"),
        ("db", "localhost:5432", None, "no address"),
        ("db", "0.0.0.0:5432", None, "nothing can be reached"),
        ("db", "10.0.0.5:0", None, "no port"),
        ("db", "10.0.0.5:1", "udp", "no check"),
        ("db", "10.0.0.5:1", "http:no-slash", "no check"),
        ("db", "10.0.0.5:1", "http:/a\r\nb", "no check"),
    ],
)
def test_what_cannot_be_announced(name: str, address: str, check: str | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        AnnounceSource(name, address, node="n1", check=check)


def test_rise_and_fall() -> None:
    health = Health(rise=2, fall=3)
    results = [False, True, False, False, True, False, False, False, True, False, True, True]
    ups = []
    for good in results:
        health.observe(good)
        ups.append(health.up)
    assert ups == [False, True, True, True, True, True, True, False, False, False, False, True]


class Answering(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.05,))
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def registers(source: AnnounceSource) -> bool:
    return bool(source.registrations())


def test_an_http_check_decides(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{server.server_port}"
    source = AnnounceSource("web", address, node="n1", check="http:/health", interval_seconds=0.02)
    other = AnnounceSource("web", address, node="n1", check="http:/absent", interval_seconds=0.02)
    try:
        until(lambda: source.wait(1) and registers(source), "up")
        until(lambda: "404" in str(other.problems), "never up")
        assert not registers(other)
        monkeypatch.setattr(Answering, "status", 503)
        until(lambda: source.wait(1) and not registers(source), "down")
        assert "503" in source.problems[0].reason
        monkeypatch.setattr(Answering, "status", 204)
        until(lambda: source.wait(1) and registers(source), "up again")
        assert not source.problems
    finally:
        source.close()
        other.close()


def test_a_tcp_check_decides() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        source = AnnounceSource("web", address, node="n1", check="tcp", interval_seconds=0.02)
        until(lambda: registers(source), "up")
    until(lambda: not registers(source), "down")
    source.close()


def test_a_store_out_of_reach_at_the_start_is_said(tmp_path: Path) -> None:
    arguments = [*discovery_command(), "announce", "--store=etcd3://127.0.0.1:1", "web", "127.0.0.1:8000"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(arguments, stderr=file) as sidekick:
        until(lambda: "registering_waits_for_the_store" in log.read_text(), "it says what it waits for")
        sidekick.terminate()
        assert sidekick.wait(20) == 0
    assert log.read_text().count("registering_waits_for_the_store") == 1
    assert "level=error" not in log.read_text()


def test_a_port_alone_is_on_this_node(tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = [*discovery_command(), "announce", f"--store=file://{store}", "--node=n1"]
    arguments += ["--address=192.0.2.7", "--drain=0", "web", ":8000"]
    with subprocess.Popen(arguments) as sidekick:
        key = store / "services/web/hosts/n1:192.0.2.7:8000"
        until(lambda: key.exists() and "192.0.2.7:8000" in key.read_text(), "announced")
        sidekick.terminate()
        assert sidekick.wait(20) == 0
    assert not key.exists()
