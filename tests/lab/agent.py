"""A real agent, as the installed `discovery` command, and requests to it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.lab.wait import until

READY_SECONDS = 30.0


def discovery_command() -> list[str]:
    """The command of the environment that runs the tests: in CI, one installed from the wheel."""
    beside = Path(sys.executable).with_name("discovery")
    found = str(beside) if beside.exists() else shutil.which("discovery")
    assert found, "discovery is not installed in the environment of the tests"
    return [found]


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Agent:
    """`discovery agent` on loopback ports of its own; a context manager that ends it and its HAProxy."""

    def __init__(
        self,
        directory: Path,
        store_url: str,
        *arguments: str,
        roles: str = "proxy,dns,status",
        http: Sequence[str] = (),
        dns: str | None = None,
    ) -> None:
        self.state_dir = directory
        self.http_port, self.dns_port, self.status_port = free_port(), free_port(), free_port()
        binds = ",".join([f"127.0.0.1:{self.http_port}", *http])
        self.arguments = [
            *discovery_command(),
            "agent",
            f"--store={store_url}",
            f"--state={directory}",
            f"--roles={roles}",
            f"--http={binds}",
            f"--dns={dns or f'127.0.0.1:{self.dns_port}'}",
            f"--status=127.0.0.1:{self.status_port}",
            *arguments,
        ]
        self.dns_server = dns.partition(":")[0] if dns else "127.0.0.1"
        self.log = directory.with_name(directory.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] | None = None

    def start(self, *, ready: bool = True) -> Self:
        """Start the process; wait until it says it is ready, unless told otherwise."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # Whatever runs the tests may ignore hang-ups, as nohup does, and so would the agent.
                ["env", "--default-signal=HUP", *self.arguments],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        if ready:
            self.wait(lambda: self.status("/readyz")[0] == 200 or self._has_ended(), "is ready")
            assert not self._has_ended(), self.log.read_text()[-4000:]
        return self

    def _has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        """Wait for a condition; its failure shows the agent's log."""
        until(condition, f"agent: {what}", seconds, detail=lambda: self.log.read_text()[-4000:])

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """kill -9 of the agent alone."""
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        self._end_haproxy()

    def with_environment(self, environment: Mapping[str, str]) -> Self:
        """The same agent, with more variables in its environment."""
        self._environment = {**os.environ, **environment}
        return self

    def haproxy_pids(self) -> list[int]:
        """The processes of its HAProxy, the master first."""
        needle = f"{self.state_dir}/"
        found = []
        for entry in Path("/proc").iterdir():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if entry.name.isdigit() and needle in arguments and "haproxy.cfg" in arguments:
                found.append(int(entry.name))
        return sorted(found)

    def kill_haproxy(self) -> int:
        """kill -9 of HAProxy's master; its pid."""
        master = self.haproxy_pids()[0]
        os.kill(master, signal.SIGKILL)
        return master

    def _end_haproxy(self) -> None:
        """What a killed agent leaves behind on purpose must not outlive the test."""
        for pid in self.haproxy_pids():
            os.kill(pid, signal.SIGKILL)

    # -- requests

    def get(self, path: str = "/", host: str | None = None, port: int | None = None) -> tuple[int, str]:
        """Status and body of a GET through the edge, 0 and the error when there is no answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.http_port}{path}")
        if host is not None:
            request.add_header("Host", host)
        return fetch(request)

    def status(self, path: str) -> tuple[int, str]:
        """The status role's answer."""
        return fetch(urllib.request.Request(f"http://127.0.0.1:{self.status_port}{path}"))

    def metric(self, name: str) -> float | None:
        """The value of a metric without labels, None when it has none."""
        for line in self.status("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return None

    def metric_sum(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        lines = self.status("/metrics")[1].splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))
        )

    def reload_seconds(self) -> list[float]:
        """How long each reload of HAProxy took, its check included, as the agent logged it."""
        lines = re.findall(
            r"event=haproxy_reloaded (?!reason=start).* seconds=([0-9.]+)", self.log.read_text()
        )
        return [float(seconds) for seconds in lines]

    def services(self) -> dict[str, object]:
        """The document of /services."""
        document: dict[str, object] = json.loads(self.status("/services")[1])
        return document


def fetch(request: urllib.request.Request) -> tuple[int, str]:
    """Status and body, whatever the status; 0 and the error when there is no answer."""
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, repr(error)


def run(*arguments: str, input_text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one discovery command to its end."""
    return subprocess.run(
        [*discovery_command(), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        input=input_text,
        check=False,
    )
