"""A real HAProxy that the tests run as systemd would, and External, which only writes and asks."""

import os
import re
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from discovery.config import load
from discovery.errors import ApplyError
from discovery.haproxy.engine import OldWorker
from discovery.haproxy.external import External, WorkerReplaced
from discovery.haproxy.generations import Generations
from discovery.haproxy.process import ReloadFailed
from discovery.haproxy.program import haproxy_version
from discovery.haproxy.runtime import ask
from discovery.haproxy.settings import ProxySettings
from discovery.roles import proxy_settings
from tests.lab.haproxy import VERSIONS, fetch, front_port, haproxy_binary, settings, until
from tests.lab.unit import Unit

PAGE = Path(__file__).parents[2] / "docs" / "external.md"
SITE = """
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend site
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain lf-string "{text} %[str(key),map_str(some.map,no)]"
backend spare
    server s1 127.0.0.1:{port} disabled
"""


def block(language: str) -> str:
    """The sample of a language in the documentation."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return found[1]


SAMPLE = tomllib.loads(block("toml"))["proxy"]


class Site:
    """A place for HAProxy's files, and the unit that runs what is there."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.binary = binary
        self.of = self.settings_of(directory / "state")
        self.of.directory.mkdir(parents=True)
        self.unit = Unit(
            binary, directory, block("ini").replace("/var/lib/discovery/.agent", str(self.of.state_dir))
        )
        self.generations = Generations(self.of.directory)

    def settings_of(self, state_dir: Path, **more: Any) -> ProxySettings:
        more = {"reload_cmd": SAMPLE["reload_cmd"], "start_timeout_seconds": 20.0, **more}
        return settings(state_dir, self.binary, mode=SAMPLE["mode"], **more)

    def external(self, **more: Any) -> External:
        """The engine, with settings of a test; the front's port stays the same."""
        of = self.settings_of(self.of.state_dir, http=self.of.http, **more)
        return External(of, haproxy_version(self.binary))

    def write(self, text: str, more: str = "") -> None:
        """Make this the current configuration, which answers with ``text``."""
        config = f"""
global
    default-path config
    stats socket {self.of.admin_socket} mode 600 level admin expose-fd listeners
    hard-stop-after 10s
""" + SITE.format(port=front_port(self.of), text=text)
        self.generations.stage({"haproxy.cfg": config + more, "some.map": ""})
        self.generations.promote()

    def text(self) -> str:
        return fetch(front_port(self.of)).text

    def systemctl(self, verb: str) -> None:
        subprocess.run([self.unit.bin / "systemctl", verb, "haproxy"], check=True, timeout=30)


@pytest.fixture(params=VERSIONS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(haproxy_binary(request.param), tmp_path)
    monkeypatch.setenv("PATH", f"{site.unit.bin}:{os.environ['PATH']}")
    site.write("one")
    try:
        yield site
    finally:
        site.unit.kill()


def worker_of(site: Site) -> int:
    info = ask(site.of.admin_socket, "show info", 10)
    return int(re.search(r"^Pid: (\d+)$", info, re.MULTILINE)[1])  # type: ignore[index]


# ---- the sample of the documentation -----------------------------------------------------------------


def test_drop_in_names_the_configuration_of_the_default_state_directory(tmp_path: Path) -> None:
    of = proxy_settings(load({"state_dir": "/var/lib/discovery"}, {}, None).settings)
    drop_in = block("ini")
    assert f'Environment="CONFIG={of.config}"' in drop_in
    assert f"ConditionPathExists={of.config}\n" in drop_in


def test_reload_cmd_of_the_sample_starts_and_reloads(site: Site) -> None:
    external = site.external()
    assert external.pid is None
    assert not external.adopt()
    external.start()
    assert external.pid == worker_of(site)
    assert external.version == haproxy_version(site.binary).version
    assert site.text() == "one no"
    for text in ("two", "three"):
        former = external.pid
        site.write(text)
        external.reload()
        assert external.pid not in (None, former)
        assert external.pid == worker_of(site)
        assert site.text() == f"{text} no"
    assert "\nPid: " in external.ask("show info")


def test_start_has_one_that_runs_load_the_files(site: Site) -> None:
    """It may have been started by others before the files were what they are."""
    site.systemctl("start")
    external = site.external()
    until(external.adopt, "HAProxy runs")
    site.write("two")
    external.start()
    assert site.text() == "two no"


def test_one_that_runs_is_adopted_and_left_as_it_was(site: Site) -> None:
    site.external().start()
    pid = worker_of(site)
    external = site.external()
    assert external.adopt()
    assert external.pid == pid
    external.trim_log()
    external.clear()
    external.stop()
    assert external.pid is None
    assert site.text() == "one no"
    assert worker_of(site) == pid


# ---- commands ----------------------------------------------------------------------------------------


def test_runtime_commands_reach_the_worker_with_their_payload(site: Site) -> None:
    external = site.external()
    external.start()
    assert external.ask("set server spare/s1 state ready").strip() == ""
    assert external.ask("add map some.map <<\nkey some\nother 1\n").strip() == ""
    assert site.text() == "one some"
    assert "spare 1 s1" in external.ask("show servers state")
    assert external.ask("show servers state").startswith("1\n#")


def test_former_workers_are_shown_while_they_have_connections(site: Site) -> None:
    external = site.external()
    external.start()
    former = external.pid
    assert former is not None
    assert external.old_workers() == ()
    with socket.create_connection(("127.0.0.1", front_port(site.of))) as pinned:
        pinned.sendall(b"GET / HTTP/1.1\r\n")
        site.write("two")
        external.reload()
        assert external.pid != former
        assert external.old_workers() == (OldWorker(former),)
    until(lambda: external.old_workers() == (), "the former worker ended")


# ---- reloads that are none ---------------------------------------------------------------------------


def refused(site: Site, external: External) -> str:
    """What a reload that fails says; the worker of before serves what it served."""
    assert external.adopt()
    former = external.pid
    site.write("two")
    with pytest.raises(ReloadFailed) as caught:
        external.reload()
    assert external.pid == former == worker_of(site)
    assert site.text() == "one no"
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("echo it cannot be >&2; exit 3", {}, "ended with status 3: it cannot be"),
        ("no-such-command", {}, "ended with status 127"),
        ("true", {"start_timeout_seconds": 0.3}, "ended well, and yet no new worker serves"),
        ("echo waiting; sleep 600", {"command_timeout_seconds": 0.3}, "took longer than 0.3 s"),
    ],
)
def test_command_that_does_not_reload_is_no_reload(
    site: Site, command: str, more: dict[str, Any], said: str
) -> None:
    site.external().start()
    assert said in refused(site, site.external(reload_cmd=command, **more))


def test_configuration_that_haproxy_refuses_is_no_reload_and_no_outage(site: Site) -> None:
    external = site.external()
    external.start()
    pid = external.pid
    site.write("two", "\nfrontend broken\n    bind nowhere\n")
    with pytest.raises(ReloadFailed, match=r"proxy\.reload_cmd .* ended with status 1"):
        external.reload()
    assert external.pid == pid
    assert site.text() == "one no"
    site.write("three")
    external.reload()
    assert site.text() == "three no"


def test_command_that_fails_after_its_work_is_a_reload(site: Site) -> None:
    site.external().start()
    external = site.external(reload_cmd=f"{SAMPLE['reload_cmd']}; exit 5")
    assert external.adopt()
    former = external.pid
    site.write("two")
    with capture_logs() as logs:
        external.reload()
    assert site.text() == "two no"
    assert external.pid not in (None, former)
    assert [each["event"] for each in logs] == ["haproxy_reload_cmd_failed", "haproxy_loaded"]


def test_where_nothing_runs_a_failing_command_is_no_failed_reload(site: Site) -> None:
    with pytest.raises(ApplyError, match=r"HAProxy cannot be started: .* status 1") as caught:
        site.external(reload_cmd="exit 1").start()
    assert not isinstance(caught.value, ReloadFailed), "nobody serves what was served before"


# ---- what others do with it --------------------------------------------------------------------------


def test_haproxy_that_died_is_noticed_and_so_is_the_next_one(site: Site) -> None:
    external = site.external()
    external.start()
    assert not external.wait_for_end(0.05)
    site.unit.kill()
    until(lambda: external.wait_for_end(0.1), "its end is noticed")
    assert external.pid is None
    with pytest.raises(ApplyError):
        external.ask("show info")
    site.systemctl("start")
    until(lambda: worker_of(site) if site.of.admin_socket.exists() and lives(site) else 0, "HAProxy is back")
    assert external.pid is None, "it is not the one that we know"
    with pytest.raises(WorkerReplaced):
        external.ask("show info")
    assert external.adopt()
    assert external.pid == worker_of(site)
    site.unit.kill()
    external.start()
    assert site.text() == "one no"


def lives(site: Site) -> bool:
    try:
        return "\nPid: " in ask(site.of.admin_socket, "show info", 10)
    except ApplyError:
        return False


def test_command_never_counts_that_went_to_a_worker_we_do_not_know(site: Site) -> None:
    external = site.external()
    external.start()
    former = external.pid
    site.systemctl("reload")
    until(lambda: worker_of(site) != former, "another worker runs")
    with pytest.raises(WorkerReplaced, match=str(former)):
        external.ask("set server spare/s1 state ready")
    assert external.wait_for_end(20)
    assert external.adopt()
    assert external.ask("set server spare/s1 state ready").strip() == ""


def test_worker_that_is_stopping_is_none(site: Site) -> None:
    external = site.external()
    external.start()
    assert site.unit.master is not None
    with socket.create_connection(("127.0.0.1", front_port(site.of))) as pinned:
        pinned.sendall(b"GET / HTTP/1.1\r\n")
        os.kill(site.unit.master, signal.SIGUSR1)
        until(lambda: external.pid is None, "its stopping is noticed")
        assert not external.adopt()


# ---- the check ---------------------------------------------------------------------------------------


def test_check_is_haproxys_own_by_default(site: Site) -> None:
    external = site.external()
    external.check(site.of.config)
    site.write("two", "\nnonsense\n")
    with pytest.raises(ApplyError, match="nonsense"):
        external.check(site.of.config)


def test_check_cmd_is_given_the_path_as_one_word(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "a 'strange' $name.cfg"
    path.write_text("good\n")
    script = tmp_path / "check"
    script.write_text(
        "#!/bin/sh\ngrep -q good \"$1\" && exit 0\necho\necho '[ALERT] (1) : bad file'\nexit 1\n"
    )
    script.chmod(0o755)
    external = site.external(check_cmd=f"{script} {{{{src}}}}")
    external.check(path)
    path.write_text("worse\n")
    with pytest.raises(ApplyError, match=r"^proxy\.check_cmd refuses the configuration: bad file$"):
        external.check(path)


def test_check_cmd_that_hangs_is_killed(site: Site) -> None:
    external = site.external(check_cmd="sleep 600", command_timeout_seconds=0.2)
    with pytest.raises(ApplyError, match="took longer"):
        external.check(site.of.config)
