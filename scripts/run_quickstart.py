"""Runs an agent and two announced instances of the demo service; `./scripts/quickstart` calls it.

Everything lives below one temporary directory and on free ports of the loopback address, needs no root,
and is gone afterwards.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import docker
from dnslib import DNSRecord

MARK = "QUICKSTART_DIRECTORY"
HOST = "127.0.0.1"
READY_SECONDS = 60.0
STOP_SECONDS = 15.0
DISCOVERY = Path(sys.executable).with_name("discovery")
DEMO = Path(__file__).with_name("demo_service.py")


class Ended(Exception):
    """A part ended by itself, or the whole does not come up; the text is for people."""


class Parts:
    """The processes of this run, ended in the reverse order of their start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, name: str, *arguments: str) -> None:
        """Start `discovery` with these arguments; what it prints goes to a file of its own."""
        log = self._directory / f"{name}.log"
        with log.open("wb") as out:
            # A session of its own: the terminal's Ctrl-C reaches only us, who end the parts in order.
            process = subprocess.Popen(
                [str(DISCOVERY), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | {MARK: str(self._directory)},
                start_new_session=True,
            )
        self._running.append((process, log))

    def check(self) -> None:
        """Raise Ended, with the last it printed, when a part has ended."""
        for process, log in self._running:
            if process.poll() is not None:
                raise Ended(f"{log.stem} ended with status {process.returncode}:\n{tail(log)}")

    def logs(self) -> str:
        """The last that each part printed."""
        return "\n".join(f"--- {log.stem}\n{tail(log)}" for _, log in self._running)

    def stop(self) -> None:
        """End all, and whatever one of them may have left behind."""
        for process, _ in reversed(self._running):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in processes_below(self._directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def processes_below(directory: Path) -> list[int]:
    """Processes whose command line or environment names our directory, which nobody else uses."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if os.fsencode(directory) in said:
                    found.append(int(entry.name))
    return found


def free_ports(count: int) -> list[int]:
    """Ports free for TCP and UDP alike, a moment ago."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            tcp = held.enter_context(socket.socket(type=socket.SOCK_STREAM))
            udp = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            tcp.bind((HOST, 0))
            port = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind((HOST, port))
                ports.append(port)
        return ports


def answer(port: int, path: str, host: str | None = None) -> str | None:
    """The body of a 200, None for any other answer or none."""
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", headers={"Host": host} if host else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a proxy
    try:
        with opener.open(request, timeout=2) as response:
            return str(response.read().decode()) if response.status == 200 else None
    except (OSError, ValueError):
        return None


def answers_dns(port: int, name: str) -> bool:
    try:
        reply = DNSRecord.parse(DNSRecord.question(name).send(HOST, port, timeout=2))
    except (OSError, ValueError):
        return False
    return bool(reply.rr)


def wait_until_served(conditions: Sequence[Callable[[], bool]], parts: Parts, stop: threading.Event) -> None:
    """Return when all hold, or when we are to stop."""
    deadline = time.monotonic() + READY_SECONDS
    while not stop.is_set() and not all(condition() for condition in conditions):
        parts.check()
        if time.monotonic() > deadline:
            raise Ended(f"it does not answer within {READY_SECONDS:g} s\n{parts.logs()}")
        stop.wait(0.1)


def docker_version() -> str | None:
    """The version of the Docker engine that answers here, None without one."""
    try:
        with contextlib.closing(docker.from_env(timeout=3)) as client:
            return str(client.version()["Version"])
    except (docker.errors.DockerException, OSError, KeyError):
        return None


def run(directory: Path, stop: threading.Event) -> None:
    """Start everything, say how to see it, and go on until ``stop``."""
    http, dns, status, first, second = free_ports(5)
    engine = docker_version()
    # Named, so that a role that cannot run is an error with its reason; unnamed, it would be skipped.
    roles = "proxy,dns,status" + (",registrator" if engine else "")
    where = ("--store", f"file://{directory}/store", "--state", f"{directory}/state")
    parts = Parts(directory)
    try:
        parts.start(
            "agent",
            "agent",
            *where,
            *("--roles", roles, "--address", HOST, "--bind-address", HOST),
            *("--http", f"{HOST}:{http}", "--dns", f"{HOST}:{dns}", "--status", f"{HOST}:{status}"),
        )
        for number, port in enumerate((first, second), start=1):
            demo = (sys.executable, str(DEMO), str(port), f"instance {number} of web")
            parts.start(f"web{number}", "announce", *where, "web", f"{HOST}:{port}", "--", *demo)
        wait_until_served(
            [
                # Requests take turns, so two in a row tell whether both instances serve.
                lambda: len({answer(http, "/", host="web.any.domain") for _ in range(2)} - {None}) == 2,
                lambda: answer(http, "/web/") is not None,
                lambda: answers_dns(dns, "web.local"),
            ],
            parts,
            stop,
        )
        if not stop.is_set():
            print(message(http, dns, status, directory, engine), flush=True)
        while not stop.wait(0.5):
            parts.check()
    finally:
        parts.stop()


def message(http: int, dns: int, status: int, directory: Path, engine: str | None) -> str:
    containers = (
        f"Docker {engine} answers: its containers with published ports are picked up too."
        if engine
        else "No Docker engine answers here, so no containers are picked up."
    )
    return f"""
discovery is running, with two instances of a demo service named web. In another terminal:

    curl -H 'Host: web.any.domain' http://{HOST}:{http}/
    curl http://{HOST}:{http}/web/
    dig @{HOST} -p {dns} web.local +short

{containers}
What is served:       curl http://{HOST}:{status}/services
Add a service:        mkdir -p {directory}/store/services/NAME/hosts
                      echo IP:PORT > {directory}/store/services/NAME/hosts/0
Ctrl-C ends it all."""


def main() -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    directory = Path(tempfile.mkdtemp(prefix="discovery-"))
    try:
        run(directory, stop)
    except Ended as ended:
        print(f"quickstart: {ended}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
