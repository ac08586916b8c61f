"""`announce`: an address with a check, and a command that is announced while it runs."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from discovery.announced import run_announced
from discovery.errors import CommandError, ConfigError
from discovery.registrator import Registrator
from discovery.sources.announce import AnnounceSource, Health
from discovery.stores import open_store
from tests.lab.agent import discovery_command
from tests.lab.wait import until

ID = "n1:127.0.0.1:8000"


# ---- the source -------------------------------------------------------------------------------------


def test_without_a_check_it_is_registered() -> None:
    source = AnnounceSource("db", "[2001:DB8::5]:5432", node="n1", scheme="tcp", host_port=5432)
    (found,) = source.registrations()
    assert (found.service, found.instance.address) == ("db", "[2001:db8::5]:5432")
    assert found.instance.id == "n1:2001:db8::5:5432"
    assert (found.instance.attributes.scheme, found.instance.attributes.host_port) == ("tcp", 5432)
    assert not source.wait(0)


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


# ---- around a command -------------------------------------------------------------------------------


def run(tmp_path: Path, *command: str) -> int:
    with closing(open_store(f"file://{tmp_path}/store")) as store:
        source = AnnounceSource("web", "127.0.0.1:8000", node="n1")
        return run_announced(command, Registrator(store, source, ttl_seconds=10))


def test_the_exit_status_is_kept_and_the_keys_are_gone(tmp_path: Path) -> None:
    key = tmp_path / "store/services/web/hosts" / ID
    status = run(tmp_path, "sh", "-c", f"until test -e {key}; do sleep 0.05; done; exit 7")
    assert status == 7
    assert not key.exists()


def test_a_signals_status_is_that_of_a_shell(tmp_path: Path) -> None:
    assert run(tmp_path, "sh", "-c", "kill -9 $$") == 128 + 9


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CommandError, match="cannot be started"):
        run(tmp_path, "/nowhere/to/be/found")
    assert signal.getsignal(signal.SIGTERM) is before


# When it is stopped, it writes down whether it is still announced.
COMMAND = """
import pathlib, signal, sys, threading
key, log = map(pathlib.Path, sys.argv[1:])
def note(number, frame):
    with log.open("a") as file:
        file.write(f"{signal.Signals(number).name} {'announced' if key.exists() else 'withdrawn'}\\n")
    if number == signal.SIGTERM:
        sys.exit(3)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, note)
log.touch()
while True:
    signal.pause()
"""

SIDEKICK = """
import sys
from contextlib import closing
from discovery.announced import run_announced
from discovery.registrator import Registrator
from discovery.sources.announce import AnnounceSource
from discovery.stores import open_store
with closing(open_store(sys.argv[1])) as store:
    source = AnnounceSource("web", "127.0.0.1:8000", node="n1")
    sys.exit(run_announced(sys.argv[2:], Registrator(store, source, ttl_seconds=10)))
"""


def test_withdrawn_before_the_command_is_stopped(tmp_path: Path) -> None:
    key, log = tmp_path / "store/services/web/hosts" / ID, tmp_path / "log"
    command = [sys.executable, "-c", COMMAND, str(key), str(log)]
    arguments = [sys.executable, "-c", SIDEKICK, f"file://{tmp_path}/store", *command]
    with subprocess.Popen(arguments, start_new_session=True) as sidekick:
        try:
            until(lambda: key.exists() and log.exists(), "announced")
            assert key.read_text().strip() == "127.0.0.1:8000"
            sidekick.send_signal(signal.SIGHUP)
            until(
                lambda: "SIGHUP announced\n" in log.read_text(),
                "SIGHUP is passed on, and nothing else happens",
            )
            sidekick.send_signal(signal.SIGTERM)
            assert sidekick.wait(30) == 3
        finally:
            if sidekick.poll() is None:
                os.killpg(sidekick.pid, signal.SIGKILL)
    assert log.read_text() == "SIGHUP announced\nSIGTERM withdrawn\n"


def test_a_store_out_of_reach_at_the_start_is_said(tmp_path: Path) -> None:
    arguments = [*discovery_command(), "announce", "--store=etcd3://127.0.0.1:1", "web", "127.0.0.1:8000"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(arguments, stderr=file) as sidekick:
        until(lambda: "registering_waits_for_the_store" in log.read_text(), "it says what it waits for")
        sidekick.terminate()
        assert sidekick.wait(20) == 0
    assert log.read_text().count("registering_waits_for_the_store") == 1
    assert "level=error" not in log.read_text()
