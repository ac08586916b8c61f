"""`./scripts/quickstart` in a fresh copy of the tree: sets itself up, serves, leaves nothing behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.need import need
from tests.lab.wait import until

ROOT = Path(__file__).parents[2]
SET_UP_SECONDS = 240.0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without anything that is made, such as .venv."""
    tree = tmp_path_factory.mktemp("quick") / "tree"
    tree.mkdir()
    for name in ("discovery", "templates", "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    return tree


class Quickstart:
    """``temporary`` is empty and short; all that is started names it, which makes leftovers easy to find."""

    def __init__(self, tree: Path, temporary: Path, output: Path) -> None:
        self.temporary = temporary
        self.output = output
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [str(tree / "scripts" / "quickstart")],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=outside_tox() | {"TMPDIR": str(temporary)},
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        until(
            lambda: words in self.text() or self.process.poll() is not None,
            f"quickstart prints {words!r}",
            SET_UP_SECONDS,
            detail=self.text,
        )
        assert words in self.text(), self.text()

    def commands(self) -> list[str]:
        return re.findall(r"^    ((?:curl|dig) .*)$", self.text(), re.MULTILINE)

    def leftovers(self) -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if entry.name.isdigit() and os.fsencode(self.temporary) in command + environment:
                found.append(f"{entry.name} {command!r}")
        return found


def outside_tox() -> dict[str, str]:
    """The environment as a person has it."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}


@pytest.fixture
def quickstart(tree: Path, tmp_path: Path) -> Iterator[Quickstart]:
    need("haproxy")
    # pytest's own directories are too long for the sockets that the agent makes in it.
    with tempfile.TemporaryDirectory(prefix="quick-") as temporary:
        started = Quickstart(tree, Path(temporary), tmp_path / "output")
        try:
            yield started
        finally:
            if started.process.poll() is None:
                started.process.terminate()
                started.process.wait(60)


def shell(command: str) -> str:
    need(command.split()[0])
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=outside_tox() | {"no_proxy": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_serves_what_it_prints_and_ends_cleanly(quickstart: Quickstart, number: signal.Signals) -> None:
    quickstart.wait_for("Ctrl-C ends it all.")
    by_host, by_path, by_name = quickstart.commands()
    answers = {shell(by_host) for _ in range(4)}
    assert answers == {f"instance {n} of web was asked for /\n" for n in (1, 2)}
    assert re.fullmatch(r"instance [12] of web was asked for /\n", shell(by_path))
    assert shell(by_name) == "127.0.0.1\n"
    ports = [
        int(port)
        for port in re.findall(r"127\.0\.0\.1:(\d+)|-p (\d+)", quickstart.text())
        for port in port
        if port
    ]
    assert ports and all(map(listens, ports))
    assert quickstart.leftovers() != []

    quickstart.process.send_signal(number)
    assert quickstart.process.wait(60) == 0, quickstart.text()
    assert quickstart.leftovers() == []
    assert list(quickstart.temporary.iterdir()) == []
    assert not any(map(listens, ports))


def test_a_missing_haproxy_is_named_with_its_mend(tree: Path, tmp_path: Path) -> None:
    """As a person without root: in a mount namespace in which HAProxy cannot be executed."""
    if os.getuid() != 0:
        pytest.skip("hiding HAProxy needs root")
    user = tmp_path / "id"
    user.write_text("#!/bin/sh\necho 1000\n")
    user.chmod(0o755)
    hidden = shutil.which("haproxy")
    hide = f"mount --bind /dev/null {hidden} && " if hidden else ""
    done = subprocess.run(
        [need("unshare"), "--mount", "sh", "-c", f"{hide}exec {tree}/scripts/quickstart"],
        env=outside_tox() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr == "HAProxy is missing: install it (apt-get install haproxy), or run this as root once.\n"
    )
