"""The commands that look and change, as the installed program, on a file store."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery.catalog import Problem
from discovery.haproxy.accept import AcceptRequest, HeldFile
from discovery.haproxy.massloss import MassLoss
from discovery.haproxy.report import ProxyStatus, Waiting
from discovery.status.metrics import Metrics
from discovery.status.server import StatusServer
from discovery.status.view import StatusView
from tests.lab.agent import discovery_command, run
from tests.lab.need import need
from tests.lab.thread import in_thread
from tests.lab.wait import until


def on(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(f"--store=file://{tmp_path}", *arguments)


def test_help_names_every_command() -> None:
    said = run("--help").stdout
    for command in (
        "agent", "registrator", "proxy", "dns", "announce", "services", "render", "set", "unset", "config",
    ):  # fmt: skip
        assert f"\n  {command} " in said
        assert run(command, "--help").returncode == 0


def test_set_writes_checked_keys_and_unset_removes_them(tmp_path: Path) -> None:
    assert on(tmp_path, "set", "web", "hosts/static", "10.0.0.5:80").returncode == 0
    assert on(tmp_path, "set", "web", "path", "keep").returncode == 0
    assert (tmp_path / "services/web/hosts/static").read_text().strip() == "10.0.0.5:80"
    document = json.loads(on(tmp_path, "services", "web", "--json").stdout)
    assert document["services"][0]["options"] == {"path": "keep"}
    assert document["services"][0]["instances"][0]["address"] == "10.0.0.5:80"
    assert "10.0.0.5:80" in on(tmp_path, "services").stdout
    assert on(tmp_path, "unset", "web", "path").returncode == 0
    assert on(tmp_path, "unset", "web", "--all").returncode == 0
    assert json.loads(on(tmp_path, "services", "--json").stdout)["services"] == []


def test_secrets_are_kept_and_not_printed(tmp_path: Path) -> None:
    said = on(tmp_path, "set", "web", "request_headers", "X-Key: s3cret").stdout
    said += on(tmp_path, "services", "--json").stdout + on(tmp_path, "services").stdout
    assert "request_headers" in said
    assert "s3cret" not in said
    assert "s3cret" in (tmp_path / "services/web/options/request_headers").read_text()
    refused = on(tmp_path, "set", "web", "auth", "alice:s3cret")
    assert refused.returncode == 2
    assert "openssl passwd -6" in refused.stderr
    assert "s3cret" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "web", "hosts/0", "10.0.0.5:99999"], "no port from 1 to 65535"),
        (["set", "web", "hosts/0", "example.com:80"], "it is ip:port or [ipv6]:port"),
        (["set", "web", "hosts/../x", "10.0.0.5:80"], "an instance id is"),
        (["set", "Web/x", "path", "keep"], "a name is 1 to 63"),
        (["set", "web", "path", "away"], "must be strip or keep"),
        (["set", "web", "pth", "keep"], "there is hosts/ID, udp/ID, and the options"),
        (["set", "web", "scheme", "ftp"], "it is http or tcp"),
        (["unset", "web", "path"], "there is no such key"),
        (["unset", "web"], "name the fields to unset"),
        (["services", "nothing"], "there is no service"),
        (["announce", "web", "nowhere:80"], "it is ip:port or [ipv6]:port"),
        (["announce", "web", "10.0.0.5:80", "--host-port=0"], "no port from 1 to 65535"),
        (["announce", "web", "10.0.0.5:80", "--check=ping"], "no check"),
        (["services", "--color"], "No such option"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_or_two(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = on(tmp_path, *arguments)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not list(tmp_path.glob("services/*/*/*")), "nothing was written"


def test_a_store_out_of_reach_is_a_failure_not_an_empty_list() -> None:
    done = run("--store=etcd3://127.0.0.1:1", "services")
    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr


def test_what_is_quarantined_is_listed_with_its_reason(tmp_path: Path) -> None:
    place = tmp_path / "services/web/hosts"
    place.mkdir(parents=True)
    (place / "good").write_text("10.0.0.5:80\n")
    (place / "bad").write_text("[red]nowhere[/red]\n")
    said = on(tmp_path, "services").stdout
    assert "/services/web/hosts/bad" in said
    assert "[red]nowhere[/red]" in said, "markup from the store is text"
    assert "10.0.0.5:80" in said


# ---- what this node makes of it ----------------------------------------------------------------------

WAITING = Waiting(("listener",), ("web",), 3600.0, 3602.0, is_urgent=True)


@contextmanager
def node(tmp_path: Path, store: str | None = None) -> Iterator[str]:
    """An agent's status role, of a node on which web's port is taken; its address."""
    problems = (
        Problem("web", "/services/web/host_port", "port 80 is [red]used"),
        Problem("api", "/services/api", "HAProxy refuses it", "kept at its last good value"),
        Problem(None, "a.pem", "has expired", "reported"),
    )
    held = MassLoss(3600, 4200, {"gone": ("0",)})
    view = StatusView(
        catalog=lambda: None,
        problems=lambda: problems,
        readiness=dict,
        health=dict,
        proxy=lambda: ProxyStatus(True, 1, "2.6", waiting=WAITING, loss=held),
        node="node1",
        store=store or f"file://{tmp_path}",
    )
    server = StatusServer(("127.0.0.1", 0), view, Metrics())
    with in_thread(server.run):
        yield f"--status=127.0.0.1:{server.address[1]}"


def test_services_tells_what_this_node_cannot_do(tmp_path: Path) -> None:
    on(tmp_path, "set", "web", "hosts/0", "10.0.0.5:80")
    with node(tmp_path) as status:
        every = on(tmp_path, "services", status).stdout
        web = on(tmp_path, "services", "web", status).stdout
        document = json.loads(on(tmp_path, "services", "web", "--json", status).stdout)
    assert "[red]used" in every
    assert "HAProxy refuses it" in every
    assert "HAProxy refuses it" not in web
    row = next(line for line in web.splitlines() if "/services/web/host_port" in line)
    assert "node1" in row
    assert "has expired" in web, "it concerns the node as a whole"
    assert "node1: a reload of HAProxy is due at 01:00:02 UTC (listener): web\n" in web
    assert [(each["service"], each["origin"]) for each in document["quarantined"]] == [
        ("web", "node"),
        (None, "node"),
    ]
    assert document["agent"]["node"] == "node1"
    assert document["agent"]["waiting"]["reasons"] == ["listener"]
    assert document["agent"]["error"] is None


def test_services_of_what_only_the_node_knows(tmp_path: Path) -> None:
    with node(tmp_path) as status:
        assert "HAProxy refuses it" in on(tmp_path, "services", "api", status).stdout
        assert on(tmp_path, "services", "gone", status).returncode == 0
        assert on(tmp_path, "services", "nothing", status).returncode == 2
    assert on(tmp_path, "services", "api", "--status=127.0.0.1:1").returncode == 2


def test_services_says_when_no_agent_could_be_asked(tmp_path: Path) -> None:
    said = on(tmp_path, "services", "--status=127.0.0.1:1").stdout
    assert "no agent answers at 127.0.0.1:1: Connection refused; what this node makes of it" in said
    with node(tmp_path, "file:///elsewhere") as status:
        said = on(tmp_path, "services", status).stdout
        document = json.loads(on(tmp_path, "services", "--json", status).stdout)
    assert "node1 follows another store, file:///elsewhere; what this node" in said
    assert "port 80" not in said
    assert document["quarantined"] == []
    assert "follows another store" in document["agent"]["error"]


def test_a_service_that_is_wholly_quarantined_has_a_reason_and_is_not_unknown(tmp_path: Path) -> None:
    place = tmp_path / "services/ftp"
    place.mkdir(parents=True)
    (place / "scheme").write_text("ftp\n")
    done = on(tmp_path, "services", "ftp")
    assert done.returncode == 0, done.stderr
    assert "/services/ftp/scheme" in done.stdout


def test_nothing_from_the_store_is_markup_or_cut_off(tmp_path: Path) -> None:
    long = "a" * 63
    on(tmp_path, "set", long, "hosts/0", "[fd00::5]:80")
    attributes = tmp_path / "services" / long / "attributes"
    attributes.mkdir()
    (attributes / "0").write_text('{"node": "[/red]\\u001b[2J"}')
    done = on(tmp_path, "services")
    assert done.returncode == 0, done.stderr
    assert "[fd00::5]:80" in done.stdout
    assert "[/red]" in done.stdout
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout


def test_render_prints_what_haproxy_accepts_and_how_it_differs(tmp_path: Path) -> None:
    need("haproxy")
    on(tmp_path, "set", "web", "hosts/0", "10.0.0.5:80")
    state = f"--state={tmp_path / 'state'}"
    done = on(tmp_path, "render", "--check", state)
    assert done.returncode == 0, done.stderr
    assert "backend service:web" in done.stdout
    difference = on(tmp_path, "render", "--diff", state).stdout
    assert "\n+backend service:web" in difference
    broken = tmp_path / "templates"
    broken.mkdir()
    (broken / "backend.cfg.j2").write_text("\n{{ nobody.knows }}\n")
    done = on(tmp_path, "render", state, f"--templates={broken}")
    assert f"{broken}/backend.cfg.j2:2" in done.stderr
    assert "nobody" in done.stderr
    assert done.returncode == 1


def test_config_tells_every_value_and_where_it_came_from(tmp_path: Path) -> None:
    document = json.loads(run("config", "--json", "--zone=example", f"--state={tmp_path}").stdout)
    assert document["dns.zone"] == {"value": "example", "from": "flag --zone"}
    assert document["registrator.ttl_seconds"] == {"value": "30.0", "from": "default"}


def test_announce_keeps_the_exit_status_of_its_command(tmp_path: Path) -> None:
    script = f"until [ -e {tmp_path}/services/web/hosts/n:10.0.0.5:80 ]; do sleep 0.05; done; exit 7"
    done = on(tmp_path, "announce", "--node=n", "web", "10.0.0.5:80", "--", "sh", "-c", script)
    assert done.returncode == 7, done.stderr
    assert not (tmp_path / "services/web/hosts/n:10.0.0.5:80").exists()


def test_announce_without_a_command_withdraws_when_told_to_stop(tmp_path: Path) -> None:
    key = tmp_path / "services/web/hosts/n:10.0.0.5:80"
    arguments = [
        *discovery_command(),
        "announce",
        f"--store=file://{tmp_path}",
        "--node=n",
        "web",
        "10.0.0.5:80",
    ]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as announcer:
        until(key.exists, "it is announced")
        announcer.send_signal(signal.SIGTERM)
        assert announcer.wait(20) == 0
    assert not key.exists()


def test_services_watch_prints_again_with_every_change(tmp_path: Path) -> None:
    out = tmp_path.with_name("out")
    arguments = [*discovery_command(), "services", "--watch", "--json", f"--store=file://{tmp_path}"]
    with out.open("w") as file, subprocess.Popen(arguments, stdout=file) as watching:
        until(lambda: out.read_text().count("\n") == 1, "the first list")
        on(tmp_path, "set", "web", "hosts/0", "10.0.0.5:80")
        until(lambda: "10.0.0.5:80" in out.read_text(), "the change")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 130


# ---- accepting a mass loss ---------------------------------------------------------------------------


def held(tmp_path: Path) -> Path:
    """The proxy role's directory, in which an agent says that it holds instances of two services."""
    directory = tmp_path / ".agent" / "haproxy"
    directory.mkdir(parents=True)
    HeldFile(directory).write(
        MassLoss(3600, 4200, {"api": ("0",), "web": tuple(f"n1:web:{port}" for port in range(80, 92))})
    )
    return directory


def test_proxy_accept_tells_what_was_held_once_the_agent_took_it(tmp_path: Path) -> None:
    directory = held(tmp_path)
    taken: list[bool] = []

    def agent(stop: threading.Event) -> None:
        request = AcceptRequest(directory)
        while not stop.wait(0.02):
            if request.take():
                taken.append(True)

    with in_thread(agent):
        done = run("proxy", "accept", f"--state={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert taken == [True]
    assert "13 instances vanished from the store at 01:00:00 UTC" in done.stdout
    assert "until 01:10:00 UTC" in done.stdout
    assert "\n  api: 0\n" in done.stdout
    assert "n1:web:89, … (12)\n" in done.stdout
    assert "accepted" in done.stdout.splitlines()[-1]
    assert not (directory / "accept").exists()


def test_proxy_accept_without_anything_held_is_done(tmp_path: Path) -> None:
    done = run("--state", str(tmp_path), "proxy", "accept")
    assert (done.returncode, done.stdout) == (0, "nothing is held back\n")
    assert list(tmp_path.iterdir()) == []


def test_proxy_accept_without_an_agent_is_a_failure_that_leaves_no_request(tmp_path: Path) -> None:
    directory = held(tmp_path)
    done = run("proxy", f"--state={tmp_path}", "accept", "--wait=0.3")
    assert done.returncode == 1
    assert "no agent took the request" in done.stderr
    assert "discovery agent" in done.stderr
    assert "accepted" not in done.stdout
    assert not (directory / "accept").exists()


def test_proxy_accept_that_cannot_read_says_so(tmp_path: Path) -> None:
    directory = held(tmp_path)
    (directory / "held.json").write_text("[]")
    done = run("proxy", "accept", f"--state={tmp_path}")
    assert done.returncode == 1
    assert "held.json: cannot be read" in done.stderr


def test_proxy_has_no_other_subcommand(tmp_path: Path) -> None:
    done = run("proxy", "acept", f"--state={tmp_path}")
    assert done.returncode == 2
    assert "No such command 'acept'" in done.stderr
