"""Real etcd servers: one, or a cluster, that can be stopped, killed, frozen and started again."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.lab.need import need
from tests.lab.wait import until

START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05


class Etcd:
    """One etcd member on 127.0.0.1; a context manager that starts and ends it.

    Ports and data stay the same over restarts. ``extra`` are further flags of etcd (they win over ours),
    ``binary`` another etcd than the one on the PATH, with its etcdctl beside it. ``scheme`` is "https" when
    ``extra`` gives the client side certificates; ``ctl_flags`` are then what etcdctl needs to talk to it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        enable_v2: bool = True,
        binary: str | None = None,
        extra: Sequence[str] = (),
        name: str = "m0",
        scheme: str = "http",
        ctl_flags: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.directory = directory / name
        self.binary = binary or need("etcd")
        beside = Path(self.binary).with_name("etcdctl")
        self.ctl_binary = str(beside) if beside.exists() else need("etcdctl")
        self.enable_v2 = enable_v2
        self.extra = tuple(extra)
        self.scheme = scheme
        self.ctl_flags = tuple(ctl_flags)
        self.port, peer_port, self._metrics_port = free_ports(3)
        self.peer_url = f"http://127.0.0.1:{peer_port}"
        self.initial_cluster = f"{name}={self.peer_url}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "etcd was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def url(self, version: int) -> str:
        """The store URL of API version 2 or 3."""
        return _store_url(version, self.scheme, [self])

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it answers and has a leader; not so with ``wait=False``."""
        assert not self.running, "etcd is running already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait_healthy()

    def _command(self) -> list[str]:
        clients = f"{self.scheme}://{self.endpoint}"
        flags = {
            "name": self.name,
            "data-dir": str(self.directory / "data"),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-metrics-urls": f"http://127.0.0.1:{self._metrics_port}",
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": self.initial_cluster,
            "enable-v2": str(self.enable_v2).lower(),
            "unsafe-no-fsync": "true",
        }
        return [self.binary, *(f"--{flag}={value}" for flag, value in flags.items()), *self.extra]

    def wait_healthy(self, timeout_seconds: float = START_SECONDS) -> None:
        """Wait until it serves; the end of its log is in the error if it does not."""
        deadline = time.monotonic() + timeout_seconds
        while not self.healthy():
            if not self.running or time.monotonic() > deadline:
                log = (self.directory / "log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"etcd {self.name} at {self.endpoint} does not serve:\n{log}")
            time.sleep(POLL_SECONDS)

    def healthy(self) -> bool:
        """Whether it answers now and has a leader. Asked beside TLS and passwords."""
        try:
            url = f"http://127.0.0.1:{self._metrics_port}/health"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(json.load(answer)["health"]) == "true"
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """End it in order. No error if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(with_signal)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Let it hang: connections are accepted by the kernel, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is only on its way: a thread on another core may still answer a request.
        tasks = Path(f"/proc/{self.pid}/task")
        until(
            lambda: all(_state(task) in "TZX" for task in tasks.iterdir()),
            f"etcd {self.name} stands still",
        )

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def requests(self) -> dict[str, float]:
        """How many requests of the v3 API it has got, by method; ``raft`` is what went through consensus."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        by_method = r'^grpc_server_started_total\{grpc_method="(\w+)".*\} (\S+)$'
        (raft,) = re.findall(r"^etcd_server_proposals_committed_total (\S+)$", text, re.MULTILINE)
        found = re.findall(by_method, text, re.MULTILINE)
        return {**{method: float(count) for method, count in found}, "raft": float(raft)}

    def ctl(self, version: int, *arguments: str) -> str:
        """What ``etcdctl`` prints, by API version 2 or 3; its failure raises AssertionError with its text."""
        return _ctl(self, version, [self], arguments)

    def keys(self, version: int) -> str:
        """Every key that it holds, one a line."""
        if version == 2:
            return self.ctl(2, "ls", "--recursive", "/")
        return self.ctl(3, "get", "--prefix", "--keys-only", "/")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class EtcdCluster:
    """``size`` members of one cluster; a context manager that starts and ends all of them."""

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        enable_v2: bool = True,
        binary: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.members = [
            Etcd(directory, enable_v2=enable_v2, binary=binary, extra=extra, name=f"m{number}")
            for number in range(size)
        ]
        for member in self.members:
            member.initial_cluster = ",".join(f"{one.name}={one.peer_url}" for one in self.members)

    def url(self, version: int) -> str:
        """The store URL of API version 2 or 3, with all members as endpoints."""
        return _store_url(version, "http", self.members)

    def start(self) -> None:
        """Start the members that do not run and wait until all of them serve."""
        for member in self.members:
            if not member.running:
                member.start(wait=False)
        for member in self.members:
            member.wait_healthy()

    def kill(self) -> None:
        """End every member as a crash does."""
        for member in self.members:
            member.kill()

    def leader(self, timeout_seconds: float = START_SECONDS) -> Etcd:
        """The running member that leads now, once there is one. Frozen members are not to be asked."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            for member in self.members:
                if member.running and _leads(member):
                    return member
            time.sleep(POLL_SECONDS)
        raise AssertionError("the cluster has no leader")

    def followers(self) -> list[Etcd]:
        """The running members that do not lead now."""
        leader = self.leader()
        return [member for member in self.members if member.running and member is not leader]

    def ctl(self, version: int, *arguments: str) -> str:
        """As ``Etcd.ctl``, with every running member as endpoint."""
        running = [member for member in self.members if member.running]
        return _ctl(running[0], version, running, arguments)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def free_ports(count: int) -> list[int]:
    """Free ports below the ephemeral range, so that no client's own end takes one while a server is down."""
    ports: list[int] = []
    for port in random.sample(range(10_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("too few free ports from 10000 to 32000")


def _store_url(version: int, scheme: str, members: Sequence[Etcd]) -> str:
    tls = "+https" if scheme == "https" else ""
    return f"etcd{version}{tls}://" + ",".join(member.endpoint for member in members)


def _ctl(member: Etcd, version: int, members: Sequence[Etcd], arguments: Sequence[str]) -> str:
    endpoints = ",".join(f"{one.scheme}://{one.endpoint}" for one in members)
    done = subprocess.run(
        [member.ctl_binary, f"--endpoints={endpoints}", *member.ctl_flags, *arguments],
        env={**os.environ, "ETCDCTL_API": str(version)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"etcdctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def _state(task: Path) -> str:
    """The state letter of a thread (proc(5)): T is stopped."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def _leads(member: Etcd) -> bool:
    try:
        status = json.loads(member.ctl(3, "endpoint", "status", "--write-out=json"))[0]["Status"]
    except (AssertionError, subprocess.TimeoutExpired):
        return False
    return bool(status["header"]["member_id"] == status.get("leader"))


def etcd35() -> str:
    """The etcd 3.5 that the environment names; without it the test is skipped, or fails where CI is set."""
    path = os.environ.get("DISCOVERY_TEST_ETCD35")
    if not path:
        if os.environ.get("CI"):
            pytest.fail("DISCOVERY_TEST_ETCD35 names no etcd 3.5")
        pytest.skip("DISCOVERY_TEST_ETCD35 names no etcd 3.5")
    return path
