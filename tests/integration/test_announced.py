"""`announce … -- COMMAND`: the command's signals, exit status and end, and what the store says meanwhile."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from discovery.announced import Announcement, run_announced
from discovery.errors import CommandError
from discovery.registrator import Registrator
from discovery.sources.announce import AnnounceSource
from discovery.stores import open_store
from tests.lab.agent import discovery_command
from tests.lab.etcd import Etcd
from tests.lab.need import need
from tests.lab.wait import until

ID = "n1:127.0.0.1:8000"
HOSTS = f"services/web/hosts/{ID}"
ATTRIBUTES = f"services/web/attributes/{ID}"

COMMAND = """
import pathlib, signal, sys, threading
store, log = map(pathlib.Path, sys.argv[1:])
def note(number, frame):
    announced = (store / "services/web/hosts/n1:127.0.0.1:8000").exists()
    with log.open("a") as file:
        file.write(f"{signal.Signals(number).name} {'announced' if announced else 'withdrawn'}\\n")
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        sys.exit(3)
for name in "TERM INT QUIT HUP USR1 USR2 WINCH CONT".split():
    signal.signal(signal.Signals["SIG" + name], note)
log.touch()
while True:
    signal.pause()
"""
"""Writes down which signals it gets, and whether it was announced then."""


class Announced:
    """`discovery announce … -- COMMAND` as a process of its own."""

    def __init__(self, directory: Path, *options: str, command: list[str] | None = None) -> None:
        self.store, self.log = directory / "store", directory / "log"
        if command is None:
            command = [sys.executable, "-c", COMMAND, str(self.store), str(self.log)]
        self.arguments = [
            *discovery_command(),
            "announce",
            f"--store=file://{self.store}",
            "--node=n1",
            *options,
            "web",
            "127.0.0.1:8000",
            "--",
            *command,
        ]

    @property
    def announced(self) -> bool:
        return (self.store / HOSTS).exists()

    @property
    def draining(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return bool(json.loads((self.store / ATTRIBUTES).read_text()).get("draining"))
        return False

    @property
    def heard(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @contextmanager
    def running(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        # Whatever runs the tests may ignore hang-ups, as nohup does, and so would announce.
        arguments = ["env", "--default-signal=HUP", *self.arguments]
        with subprocess.Popen(arguments, start_new_session=True, env={**os.environ, **environment}) as found:
            try:
                until(lambda: self.announced and self.log.exists(), "announced")
                yield found
            finally:
                if found.poll() is None:
                    os.killpg(found.pid, signal.SIGKILL)


def run(tmp_path: Path, *command: str) -> int:
    with closing(open_store(f"file://{tmp_path}/store")) as store:
        source = AnnounceSource("web", "127.0.0.1:8000", node="n1")
        announcement = Announcement(Registrator(store, source, ttl_seconds=10), source.drain)
        return run_announced(command, announcement)


# ---- its end ----------------------------------------------------------------------------------------


def test_the_exit_status_is_kept_and_the_keys_are_gone(tmp_path: Path) -> None:
    key = tmp_path / "store" / HOSTS
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_drained_then_withdrawn_then_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """Every change of the store, in order: it drains before its address goes, and that before the signal."""
    announced = Announced(tmp_path, "--drain=0.5")
    with closing(open_store(f"file://{announced.store}")) as store, announced.running() as sidekick:
        snapshot = store.snapshot("/services/")
        sidekick.send_signal(number)
        told: list[dict[str, str]] = []
        for changes in store.watch("/services/", snapshot.revision):
            told.append({each.key: each.entry.value if each.entry else "gone" for each in changes.changes})
            if f"/{HOSTS}" in told[-1]:
                break
        first, *between, last = filter(None, told)
        assert '"draining": true' in first[f"/{ATTRIBUTES}"]
        assert not between
        assert last[f"/{HOSTS}"] == "gone"
        assert sidekick.wait(30) == 3
    assert announced.heard == [f"{number.name} withdrawn"]


def test_a_second_signal_ends_the_drain(tmp_path: Path) -> None:
    announced = Announced(tmp_path, "--drain=3600")
    with announced.running() as sidekick:
        sidekick.terminate()
        until(lambda: announced.draining, "draining")
        assert announced.announced
        assert announced.heard == []
        sidekick.terminate()
        assert sidekick.wait(30) == 3
    assert announced.heard[0] == "SIGTERM withdrawn"


def test_a_command_that_ends_while_it_drains(tmp_path: Path) -> None:
    announced = Announced(tmp_path, "--drain=3600")
    with announced.running() as sidekick:
        sidekick.terminate()
        until(lambda: announced.draining, "draining")
        (child,) = children(sidekick.pid)
        os.kill(child, signal.SIGKILL)
        assert sidekick.wait(30) == 128 + 9
    assert not announced.announced


def test_a_store_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "store"), str(log)]
    with Etcd(tmp_path / "etcd", enable_v2=False) as etcd:
        arguments = [*discovery_command(), "announce", f"--store={etcd.url(3)}", "--drain=0.2"]
        arguments += ["web", "127.0.0.1:8000", "--", *command]
        with subprocess.Popen(arguments, start_new_session=True) as sidekick:
            try:
                until(
                    lambda: log.exists() and "127.0.0.1:8000" in etcd.ctl(3, "get", "--prefix", "/"), "there"
                )
                etcd.freeze()
                sidekick.terminate()
                until(lambda: "SIGTERM" in log.read_text(), "the command hears of it", 15)
                assert sidekick.wait(30) == 3
            finally:
                if sidekick.poll() is None:
                    os.killpg(sidekick.pid, signal.SIGKILL)


def test_without_a_command_it_drains_as_well(tmp_path: Path) -> None:
    announced = Announced(tmp_path, "--drain=3600", command=[])
    with subprocess.Popen(announced.arguments[:-1], start_new_session=True) as sidekick:
        try:
            until(lambda: announced.announced, "announced")
            sidekick.terminate()
            until(lambda: announced.draining, "draining")
            assert announced.announced
            sidekick.send_signal(signal.SIGINT)
            assert sidekick.wait(30) == 0
            assert not announced.announced
        finally:
            if sidekick.poll() is None:
                os.killpg(sidekick.pid, signal.SIGKILL)


def test_killed_it_takes_the_command_along(tmp_path: Path) -> None:
    with Announced(tmp_path).running() as sidekick:
        (child,) = children(sidekick.pid)
        sidekick.kill()
        until(lambda: state(child) in "XZ", "the command is gone")


# ---- signals, terminals, orphans --------------------------------------------------------------------


def test_other_signals_are_passed_on_at_once(tmp_path: Path) -> None:
    announced = Announced(tmp_path)
    with announced.running() as sidekick:
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
            sidekick.send_signal(signal.Signals[name])
            until(lambda name=name: f"{name} announced" in announced.heard, f"{name} is passed on")
        assert len(announced.heard) == 4
        assert sidekick.poll() is None


def test_at_a_terminal(tmp_path: Path) -> None:
    """Ctrl-Z stops both, SIGCONT continues both, Ctrl-C withdraws before the command hears of it."""
    announced = Announced(tmp_path, "--drain=0.2")
    master, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    sidekick = subprocess.Popen(
        announced.arguments,
        stdin=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    try:
        until(lambda: announced.announced and announced.log.exists(), "announced")
        (child,) = children(sidekick.pid)
        assert Path(f"/proc/{child}/fd/0").readlink() == Path("/dev/null")
        os.write(master, b"\x1a")
        until(lambda: state(sidekick.pid) == "T" and state(child) == "T", "both are stopped")
        os.kill(sidekick.pid, signal.SIGCONT)
        until(lambda: "SIGCONT announced" in announced.heard, "both go on")
        os.write(master, b"\x03")
        assert sidekick.wait(30) == 3
        assert announced.heard[-1] == "SIGINT withdrawn"
    finally:
        if sidekick.poll() is None:
            sidekick.kill()
            sidekick.wait()
        os.close(master)
        os.close(terminal)


def test_as_pid_1_it_reaps_orphans(tmp_path: Path) -> None:
    """The command leaves orphans that end; it counts those that nobody has reaped."""
    script = """
        for i in 1 2 3 4 5; do (sleep 0.1 &); done
        sleep 1
        cat /proc/[0-9]*/stat | grep -c ' Z ' > {out}
        exit 5
    """.format(out=tmp_path / "zombies")
    announced = Announced(tmp_path, command=["sh", "-c", script])
    arguments = [need("unshare"), "--pid", "--fork", "--mount-proc", *announced.arguments]
    assert subprocess.run(arguments, timeout=60, check=False).returncode == 5
    assert (tmp_path / "zombies").read_text() == "0\n"


# ---- a supervisor -----------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_supervisor_is_told(tmp_path: Path, abstract: bool) -> None:
    """Ready once it is registered, alive meanwhile, stopping at the end; the command cannot speak for it."""
    name = f"@discovery-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(name.replace("@", "\0", 1) if abstract else name)
        supervisor.settimeout(20)
        announced = Announced(tmp_path, "--drain=0.2")
        with announced.running(NOTIFY_SOCKET=name, WATCHDOG_USEC="300000") as sidekick:
            said = hear(supervisor, "READY=1")
            assert (tmp_path / "store" / HOSTS).exists()
            assert "STATUS=registered" in said
            hear(supervisor, "WATCHDOG=1")
            (child,) = children(sidekick.pid)
            environment = Path(f"/proc/{child}/environ").read_text()
            assert "NOTIFY_SOCKET" not in environment
            assert "WATCHDOG_USEC" not in environment
            sidekick.terminate()
            said = hear(supervisor, "STOPPING=1")
            assert announced.heard == []
            assert sidekick.wait(30) == 3


def hear(supervisor: socket.socket, word: str) -> list[str]:
    """The message that has this word."""
    while word not in (lines := supervisor.recv(4096).decode().splitlines()):
        pass
    return lines


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def state(pid: int) -> str:
    """The state letter of a process (proc(5)); X when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
