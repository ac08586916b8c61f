"""Ports kept for HAProxy, against the kernel, against intruders, and with real HAProxys."""

import errno
import multiprocessing
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from discovery.haproxy import ports
from discovery.haproxy.ports import Bind, reserve
from tests.lab.bare import Bare, bare
from tests.lab.haproxy import VERSIONS, fetch, free_port, haproxy_binary

UNPRIVILEGED = "    user nobody" if os.geteuid() == 0 else ""
"""What workers are in the end; they bind before that."""
HOSTS = ("*", "127.0.0.1", "::", "::1")


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


@pytest.fixture
def port() -> int:
    """Free on IPv4 and IPv6."""
    with socket.socket(socket.AF_INET6) as trial:
        trial.bind(("::", 0))
        return int(trial.getsockname()[1])


def listen(host: str, port: int, *, reuse_address: bool = True, share: bool = False) -> socket.socket:
    """Listen as another program does: Go's (docker-proxy) set SO_REUSEADDR, and few share a port."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        listener.bind(("" if host == "*" else host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def can_listen(host: str, port: int, *, reuse_address: bool = True, share: bool = False) -> bool:
    try:
        listen(host, port, reuse_address=reuse_address, share=share).close()
    except OSError as error:
        assert error.errno == errno.EADDRINUSE
        return False
    return True


def meet(one: str, other: str) -> bool:
    """Whether two listeners on one port are in each other's way. ``::`` takes IPv4 too."""
    return one == other or "::" in (one, other) or (":" in one) == (":" in other)


# ---- who is kept out --------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse_address", [False, True])
@pytest.mark.parametrize("intruder", HOSTS)
@pytest.mark.parametrize("host", HOSTS)
def test_another_program_is_kept_out_until_the_end(
    host: str, intruder: str, reuse_address: bool, port: int
) -> None:
    with reserve([(host, port)]) as reservation:
        assert (dict(reservation.refused), reservation.held) == ({}, {(host, port)})
        assert can_listen(intruder, port, reuse_address=reuse_address) is not meet(host, intruder)
        assert can_listen(host, port, share=True), "HAProxy must be let in"
        assert not can_listen(host, port, reuse_address=reuse_address), "it is still kept"
    assert reservation.held == frozenset()
    assert can_listen(intruder, port, reuse_address=reuse_address)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_kept_out_even_when_it_shares_ports(port: int) -> None:
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket();"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(('', int(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(port)]
    with reserve([("*", port)]):
        held = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Address already in use" in held.stderr
    subprocess.run(command, timeout=60, check=True)


@pytest.mark.parametrize("former_shared", [False, True])
def test_past_connections_are_no_obstacle_and_no_loophole(former_shared: bool, port: int) -> None:
    """In TIME_WAIT, and one that an old worker still serves."""
    listener = listen("*", port, share=former_shared)
    ended = socket.create_connection(("127.0.0.1", port))
    listener.accept()[0].close()
    ended.close()
    living = socket.create_connection(("127.0.0.1", port))
    accepted, _ = listener.accept()
    listener.close()
    with living, accepted, reserve([("*", port)]) as reservation:
        assert reservation.held == {("*", port)}
        assert not can_listen("*", port)
        assert can_listen("*", port, share=True)


def test_binds_of_one_configuration_do_not_meet_each_other(port: int) -> None:
    binds = {(host, port) for host in HOSTS}
    with reserve([*binds, *binds]) as reservation:
        assert (dict(reservation.refused), reservation.held) == ({}, binds)


# ---- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_a_port_in_use_is_refused_and_the_others_are_kept(share: bool, hold: bool, port: int) -> None:
    """Another HAProxy, which shares its ports, is in the way as well: it would get half of the traffic."""
    with listen("127.0.0.1", 0, share=share) as listener:
        taken = listener.getsockname()[1]
        with reserve([("*", taken), ("*", port)], hold=hold) as reservation:
            assert reservation.refused == {("*", taken): "is used by another program on this host"}
            assert reservation.held == ({("*", port)} if hold else frozenset())


def test_an_address_of_another_host_is_refused(port: int) -> None:
    assert "this host does not have the address 192.0.2.1" in (ports.why_not("192.0.2.1", port) or "")
    assert ports.why_not("127.0.0.1", port) is None


def test_without_descriptors_it_is_not_the_ports_fault(port: int) -> None:
    script = (
        "import resource, socket, sys; from discovery.haproxy.ports import reserve; port = int(sys.argv[1]);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); "
        "print(len(reserve((f'127.0.0.{n}', port) for n in range(1, 10)).held));"
        "more = [socket.socket() for _ in range(32 - socket.socket().fileno())];"
        "reserve([('127.0.0.1', port)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(port)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "8\n", run.stderr
    assert f"ApplyError: port {port} cannot be looked at: Too many open files" in run.stderr


# ---- against the clock ------------------------------------------------------------------------------


def _intrude(port: int, pipe: Connection) -> None:
    """Try to listen in a tight loop, each time until told otherwise; tell how often it came true."""
    while pipe.recv():
        got = tries = 0
        while not pipe.poll():
            tries += 1
            with suppress(OSError), listen("127.0.0.1", port):
                got += 1
                # So long that who comes meanwhile meets it.
                pipe.poll(0.001)
        pipe.recv()
        pipe.send((got, tries))


@contextmanager
def intruder(port: int) -> Iterator[Connection]:
    """A process of its own that, between any two sends, tries to take the port; answers how it went."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_intrude, args=(port, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join(20)


def test_an_intruder_is_either_seen_or_kept_out(port: int) -> None:
    """It comes at any instant: before the first look, between the steps, while the port is kept."""
    wanted = ("127.0.0.1", port)
    # They make the time between the steps longer.
    others = [(f"127.0.1.{n}", port) for n in range(1, 100)]
    outcomes = Counter[str]()
    with intruder(port) as pipe:
        pipe.send(True)
        for _ in range(100):
            with reserve([wanted, *others]) as reservation:
                outcomes["refused"] += wanted in reservation.refused
                assert not (wanted in reservation.held and wanted in reservation.refused)
                if wanted in reservation.held:
                    outcomes["held"] += 1
                    # As HAProxy does; raises when the intruder has it.
                    listen(*wanted, share=True).close()
        pipe.send(True)
        got, _ = pipe.recv()
        assert got > 0
    assert outcomes["refused"] > 0


@pytest.mark.parametrize("host", ["*", "::", "127.0.0.1"])
def test_haproxy_gets_the_port_that_an_intruder_wants(
    host: str, binary: str, port: int, tmp_path: Path
) -> None:
    """From the reservation to the running worker, and after it."""
    first = front(("127.0.0.1", free_port()))
    with intruder(port) as pipe, bare(binary, tmp_path, first, UNPRIVILEGED) as haproxy:
        with reserve([(host, port)]) as kept:
            assert kept.held == {(host, port)}
            pipe.send(True)
            haproxy.write(first + front((host, port)), UNPRIVILEGED)
            haproxy.reload()
            assert all(fetch(port).text == host for _ in range(20)), "no connection is lost to the hold"
        assert all(fetch(port).text == host for _ in range(20))
        pipe.send(True)
        got, tries = pipe.recv()
        assert tries > 0
        assert got == 0


def test_haproxy_starts_on_ports_that_are_kept(binary: str, port: int, tmp_path: Path) -> None:
    haproxy = Bare(binary, tmp_path)
    haproxy.write(front(("*", port)), UNPRIVILEGED)
    with reserve([("*", port)]):
        haproxy.start()
        assert fetch(port).text == "*"
    try:
        assert fetch(port).text == "*"
        assert not can_listen("*", port)
    finally:
        haproxy.stop()


def front(bind: Bind) -> str:
    host, port = bind
    address = f"[{host}]" if ":" in host else host
    return (
        f"frontend f{host.replace('*', 'any')}:{port}\n    bind {address}:{port}\n"
        f"    http-request return status 200 content-type text/plain string {host}\n"
    )
