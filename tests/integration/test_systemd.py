"""The units that come with us: accepted by systemd, and what they start is what we are."""

import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.lab.agent import Agent, discovery_command
from tests.lab.need import need

UNITS = Path(__file__).parents[2] / "templates" / "systemd"
STARTED = ("discovery-agent.service", "app@8001.service", "app-announce@8001.service")


def lines(unit: str, name: str) -> list[str]:
    """The values of one setting of a unit file."""
    found = [line.partition("=") for line in (UNITS / unit).read_text().splitlines()]
    return [value for key, _, value in found if key == name]


def test_systemd_accepts_them(tmp_path: Path) -> None:
    for unit in UNITS.glob("*.service"):
        shutil.copy(unit, tmp_path)
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", *(str(tmp_path / name) for name in STARTED)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Of a word it does not know it only warns.
    assert (done.returncode, [line for line in done.stderr.splitlines() if str(tmp_path) in line]) == (0, [])


@pytest.mark.parametrize("unit", ["discovery-agent.service", "app-announce@.service"])
def test_what_they_start_exists(unit: str) -> None:
    (started,) = lines(unit, "ExecStart")
    env, program, *arguments = shlex.split(started.replace("%i", "8001"))
    assert (env, program) == ("/usr/bin/env", "discovery")
    # An option that there is not is refused before the help is shown.
    done = subprocess.run(
        [*discovery_command(), *arguments, "--help"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert lines(unit, "Type") == ["notify"]


def test_the_sidekick_stops_before_its_app_and_with_it() -> None:
    assert lines("app-announce@.service", "BindsTo") == ["app@%i.service"]
    assert lines("app-announce@.service", "After") == ["app@%i.service"]
    assert "app-announce@%i.service" in lines("app@.service", "Wants")[0].split()


def test_the_agent_tells_its_supervisor(tmp_path: Path) -> None:
    """Ready when `/readyz` says so, alive then; HAProxy cannot speak for it."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(name)
        supervisor.settimeout(20)
        agent = Agent(tmp_path / "agent", f"file://{tmp_path}/store", roles="proxy,status")
        agent.with_environment({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000"})
        with agent:
            said = hear(supervisor, "READY=1")
            assert agent.status("/readyz")[0] == 200
            assert "WATCHDOG=1" in said
            hear(supervisor, "WATCHDOG=1")
            environments = [Path(f"/proc/{pid}/environ").read_text() for pid in agent.haproxy_pids()]
            assert environments
            assert not [each for each in environments if "NOTIFY_SOCKET" in each or "WATCHDOG" in each]
            assert agent.stop() == 0
        hear(supervisor, "STOPPING=1")


def hear(supervisor: socket.socket, word: str) -> list[str]:
    """The message that has this word."""
    while word not in (said := supervisor.recv(4096).decode().splitlines()):
        pass
    return said
