"""The app's units under a real systemd: who is ready when, who stops first, who is started again."""

import os
import shutil
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_systemd import UNITS
from tests.lab.agent import discovery_command, free_port
from tests.lab.systemd import Systemd, running_systemd
from tests.lab.wait import until

# It listens, and at its end writes down whether it was still announced.
APP = """#!{python}
import signal, socket, sys, threading
from pathlib import Path
store, log = Path("{store}"), Path("{log}")
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
while not ended.wait(0.05):
    pass
with log.open("a") as written:
    written.write("announced\\n" if list(store.glob("services/app/hosts/*")) else "withdrawn\\n")
"""


class App:
    """One instance of an app, its sidekick, and what is known of them."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.unit, self.sidekick = f"app@{port}.service", f"app-announce@{port}.service"
        self.ended = directory / "ended"
        self._store = directory / "store"
        programs = directory / "bin"
        programs.mkdir()
        app = programs / "app"
        app.write_text(APP.format(python=sys.executable, store=self._store, log=self.ended))
        app.chmod(app.stat().st_mode | stat.S_IXUSR)
        path = os.pathsep.join([str(programs), str(Path(discovery_command()[0]).parent), os.environ["PATH"]])
        settings = {
            "PATH": path,
            "DISCOVERY_STORE": f"file://{self._store}",
            "DISCOVERY_ADDRESS": "127.0.0.1",
            "DISCOVERY_STATE": str(directory / "state"),
            "DISCOVERY_NODE": "n1",
        }
        self.systemd = Systemd(directory)
        for unit in ("app@.service", "app-announce@.service"):
            shutil.copy(UNITS / unit, self.systemd.units)
            said = [f'Environment="{name}={value}"' for name, value in settings.items()]
            self.systemd.drop_in(unit, "[Service]", *said)

    def is_announced(self) -> bool:
        """Whether a key leads to it."""
        return any(self._store.glob("services/app/hosts/*"))

    def start(self) -> None:
        """Start it, and wait until it is announced."""
        self.systemd.control("start", self.unit)
        self.wait_until_announced()

    def wait_until_announced(self) -> None:
        until(
            lambda: self.is_announced() and self.systemd.is_active(self.sidekick),
            "the app is announced",
            detail=lambda: self.systemd.status(self.sidekick),
        )


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App(tmp_path)
    with running_systemd(app.systemd):
        yield app


def test_the_sidekick_is_ready_when_the_app_is_announced(app: App) -> None:
    app.start()
    # Its start returns only then, and its status says so.
    app.systemd.control("restart", app.sidekick)
    assert app.is_announced()
    assert app.systemd.is_active(app.unit)
    assert "Status:" in app.systemd.status(app.sidekick)


def test_the_app_gets_its_signal_when_it_is_withdrawn(app: App) -> None:
    app.start()
    app.systemd.control("stop", app.unit)
    assert app.ended.read_text() == "withdrawn\n"
    assert not app.systemd.is_active(app.sidekick)
    assert not app.is_announced()


def test_an_app_that_dies_takes_its_keys_along_until_it_is_back(app: App) -> None:
    app.start()
    before = app.systemd.main_pid(app.sidekick)
    os.kill(app.systemd.main_pid(app.unit), signal.SIGKILL)
    until(
        lambda: not app.is_announced(), "its keys are gone", detail=lambda: app.systemd.status(app.sidekick)
    )
    app.wait_until_announced()
    assert app.systemd.main_pid(app.sidekick) != before


def test_a_sidekick_that_hangs_is_started_again_and_the_app_left_alone(app: App) -> None:
    app.systemd.drop_in("app-announce@.service", "[Service]", "WatchdogSec=3")
    app.systemd.control("daemon-reload")
    app.start()
    serving, hung = app.systemd.main_pid(app.unit), app.systemd.main_pid(app.sidekick)
    os.kill(hung, signal.SIGSTOP)
    until(
        lambda: app.systemd.main_pid(app.sidekick) not in (0, hung),
        "another sidekick runs",
        60,
        detail=lambda: app.systemd.status(app.sidekick),
    )
    app.wait_until_announced()
    assert app.systemd.main_pid(app.unit) == serving
