"""Answering in processes of their own: one table for all, restarts, no orphan."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from discovery.catalog import Catalog, Service
from discovery.dns.processes import DnsProcesses
from discovery.dns.settings import DnsSettings
from discovery.dns.stats import Outcome
from discovery.errors import ApplyError, ConfigError
from tests.lab.dns import CATALOG, EDGE, eventually, free_port, query, rcode, serving

SETTINGS = DnsSettings((("127.0.0.1", 0),), (EDGE,), upstreams=())


AGENT = """
import threading
from discovery.catalog import Catalog, Service
from discovery.dns.processes import DnsProcesses
from discovery.dns.settings import DnsSettings

settings = DnsSettings((("127.0.0.1", 0),), ("10.0.0.1",), upstreams=())
processes = DnsProcesses(settings, processes=2)
processes.start()
run = threading.Thread(target=processes.run, args=(threading.Event(),))
run.start()
processes.apply(Catalog(1, {"web": Service("web")}))
print("port", processes.addresses[0][1], "pids", *processes.pids, flush=True)
run.join()
"""


@pytest.fixture(params=[1, 2])
def processes(request: pytest.FixtureRequest) -> Iterator[DnsProcesses]:
    with serving(DnsProcesses(SETTINGS, processes=request.param)) as processes:
        yield processes


def test_a_new_catalog_is_answered_by_every_process_once_apply_has_returned(processes: DnsProcesses) -> None:
    address = processes.addresses[0]
    for revision in range(2, 12):
        gone, new = f"s{revision - 1}", f"s{revision}"
        processes.apply(Catalog(revision, {**CATALOG.services, new: Service(new)}))
        for _ in range(8):
            # Each from another port, and so to any of the processes.
            assert rcode(query(address, f"{new}.local")) == "NOERROR"
            assert rcode(query(address, f"{gone}.local")) == "NXDOMAIN"
    assert rcode(query(address, "web.local", tcp=True)) == "NOERROR"
    eventually(lambda: processes.counts().outcomes.get(Outcome("A", "NOERROR", "local")) == 81)
    latency = processes.counts().latency["local"]
    assert sum(latency) >= 160


def test_no_name_is_denied_before_the_first_catalog() -> None:
    with serving(DnsProcesses(SETTINGS), catalog=None) as processes:
        assert rcode(query(processes.addresses[0], "web.local")) == "SERVFAIL"
        processes.apply(CATALOG)
        assert rcode(query(processes.addresses[0], "web.local")) == "NOERROR"


def test_a_process_that_dies_is_replaced_and_nobody_is_denied_meanwhile(processes: DnsProcesses) -> None:
    address, before = processes.addresses[0], processes.pids
    assert rcode(query(address, "web.local")) == "NOERROR"
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    # What comes in the very moment of its death may be taken along.
    eventually(lambda: not any(map(_runs, before)))
    for _ in range(8):
        # It waits in the socket until somebody answers.
        assert rcode(query(address, "web.local", timeout_seconds=60)) == "NOERROR"
    assert not set(before) & set(processes.pids)
    processes.apply(Catalog(9, {"other": Service("other")}))
    for _ in range(8):
        assert rcode(query(address, "web.local")) == "NXDOMAIN"


def test_a_process_that_hangs_fails_apply_and_is_replaced() -> None:
    with serving(DnsProcesses(SETTINGS, confirm_seconds=3)) as processes:
        (hung,) = processes.pids
        os.kill(hung, signal.SIGSTOP)
        changed = Catalog(2, {"other": Service("other")})
        with pytest.raises(ApplyError):
            processes.apply(changed)
        eventually(lambda: hung not in processes.pids)
        processes.apply(changed)
        assert rcode(query(processes.addresses[0], "other.local")) == "NOERROR"
        assert rcode(query(processes.addresses[0], "web.local")) == "NXDOMAIN"


def test_sigterm_to_the_group_leaves_the_order_of_ending_to_the_agent(processes: DnsProcesses) -> None:
    before = processes.pids
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert rcode(query(processes.addresses[0], "web.local")) == "NOERROR"
    assert processes.pids == before


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_port_in_use_is_an_error_of_the_agent(kind: socket.SocketKind, count: int) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, kind) as other:
        # Even somebody who would share it.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        processes = DnsProcesses(DnsSettings((("127.0.0.1", port),), (EDGE,)), processes=count)
        with pytest.raises(ConfigError, match="in use"):
            processes.start()
        assert processes.pids == ()


@contextmanager
def an_agent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, list[int]]]:
    """A program that answers in two processes, its port and theirs."""
    script = tmp_path / "agent.py"
    script.write_text(AGENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout
            words = next(line for line in agent.stdout if line.startswith("port")).split()
            pids = [int(word) for word in words[3:]]
            assert len(pids) == 2
            assert all(map(_runs, pids))
            yield agent, int(words[1]), pids
        finally:
            agent.kill()


def test_no_process_outlives_an_agent_that_is_killed(tmp_path: Path) -> None:
    with an_agent(tmp_path) as (_agent, _port, pids):
        pass
    eventually(lambda: not any(map(_runs, pids)))


def test_an_agent_that_does_nothing_more_stops_no_answer(tmp_path: Path) -> None:
    """The utmost of what a busy one could do to them."""
    with an_agent(tmp_path) as (agent, port, _pids):
        assert rcode(query(("127.0.0.1", port), "web.local")) == "NOERROR"
        agent.send_signal(signal.SIGSTOP)
        try:
            for _ in range(500):
                assert rcode(query(("127.0.0.1", port), "web.local")) == "NOERROR"
        finally:
            agent.send_signal(signal.SIGCONT)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
