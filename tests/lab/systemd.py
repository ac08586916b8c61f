"""A real systemd that runs the units of a test: a user's manager, in a mount namespace of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.need import need
from tests.lab.wait import until

MANAGER = Path("/lib/systemd/systemd")

# It wants to be told that the system was booted with systemd; only here, and for it alone, it was.
_SCRIPT = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec {manager} --user"


class Systemd:
    """A manager of the units in ``units``; drop-ins beside them say what they are to find in this test."""

    def __init__(self, directory: Path) -> None:
        self.units = directory / "units"
        self.units.mkdir(parents=True)
        self._runtime = directory / "runtime"
        self._runtime.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self._runtime),
            # The colon adds systemd's own: its targets are there.
            "SYSTEMD_UNIT_PATH": f"{self.units}:",
        }

    def drop_in(self, unit: str, *lines: str) -> None:
        """Add these lines to a unit; before it is started."""
        directory = self.units / f"{unit}.d"
        directory.mkdir(exist_ok=True)
        number = len(list(directory.iterdir()))
        (directory / f"{number}.conf").write_text("\n".join(lines) + "\n")

    def control(self, *words: str) -> str:
        """What systemctl says to these words. Fails where it does."""
        return self._systemctl(*words).stdout

    def is_active(self, unit: str) -> bool:
        """Whether it is, and so ready."""
        return self._systemctl("is-active", unit, check=False).stdout.strip() == "active"

    def main_pid(self, unit: str) -> int:
        """Its main process, 0 while there is none."""
        return int(self.control("show", "--property=MainPID", "--value", unit))

    def status(self, unit: str) -> str:
        """What a person would look at."""
        return self._systemctl("status", "--no-pager", "--full", unit, check=False).stdout

    def _systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [need("systemctl"), "--user", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=check
        )


@contextmanager
def running_systemd(systemd: Systemd) -> Iterator[Systemd]:
    """It, running; every unit is stopped afterwards. Skips where it cannot run."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    assert MANAGER.exists(), need("systemd-analyze")
    command = [need("unshare"), "--mount", "bash", "-c", _SCRIPT.format(manager=MANAGER)]
    with subprocess.Popen(command, env=systemd.environment) as process:
        try:
            until(lambda: _answers(systemd), "systemd answers")
            yield systemd
        finally:
            # The manager stops its units, and ends.
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def _answers(systemd: Systemd) -> bool:
    try:
        return bool(systemd.control("show", "--property=Version"))
    except subprocess.CalledProcessError:
        return False
