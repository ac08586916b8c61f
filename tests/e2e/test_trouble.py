"""What an agent says and does when something it needs is missing, wrong or away."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.agent import Agent, discovery_command, free_port, run
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd
from tests.lab.load import Load
from tests.lab.need import need
from tests.lab.wait import until


def arguments(tmp_path: Path, *more: str) -> list[str]:
    """An agent that would run, but for what ``more`` changes."""
    return [
        "agent",
        f"--state={tmp_path}",
        f"--http=127.0.0.1:{free_port()}",
        f"--status=127.0.0.1:{free_port()}",
        "--address=127.0.0.1",
        *more,
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--roles=registrator", "--docker=unix:///nowhere/docker.sock"],
            ["/nowhere/docker.sock", "--docker"],
        ),
        (["--roles=proxy", "--haproxy=/nowhere/haproxy"], ["/nowhere/haproxy", "install", "--haproxy"]),
        (["--roles=proxy", "--templates=/nowhere"], ["proxy.templates", "/nowhere", "--templates"]),
        (["--roles=proxy", "--certs=/nowhere"], ["proxy.certs", "/nowhere", "--certs"]),
        (["--roles="], ["roles", "names no role", "registrator, proxy, dns, status"]),
        (["--roles=proxy,cook"], ["roles", "'registrator', 'proxy', 'dns' or 'status'"]),
        (["--roles=proxy", "--http=here"], ["proxy.http", "'here'", "*:port or ip:port"]),
        (["--roles=status", "--status=127.0.0.1:x"], ["status.listen"]),
        (["--roles=proxy", "--store=etcd9://h"], ["store.url", "etcd3://"]),
        (["--roles=proxy", "--ttl=soon"], ["registrator.ttl_seconds", "number"]),
        (["--address=nowhere0"], ["node.address", "nowhere0", "--address"]),
        (["--config=/nowhere/discovery.toml"], ["--config", "/nowhere/discovery.toml"]),
    ],
)
def test_a_wrong_setting_ends_the_agent_with_its_name_and_the_mend(
    tmp_path: Path, more: list[str], said: list[str]
) -> None:
    need("haproxy")
    done = run(*arguments(tmp_path, *more))
    complaint = [line for line in done.stderr.splitlines() if line.startswith("discovery: ")]
    assert len(complaint) == 1, done.stderr
    for words in said:
        assert words in complaint[0]
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)


def test_an_unknown_key_in_the_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "discovery.toml"
    file.write_text("[proxy]\nbind_adress = '*'\n")
    done = run("agent", f"--config={file}")
    assert "proxy.bind_adress" in done.stderr
    assert "did you mean proxy.bind_address?" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_dns_port_in_use_is_named(tmp_path: Path, kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        done = run(*arguments(tmp_path, "--roles=dns", f"--dns=127.0.0.1:{port}"))
    assert f"dns.listen: 127.0.0.1 port {port} is in use" in done.stderr
    assert done.returncode == 2


@contextmanager
def announced(store: str, name: str, address: str) -> Iterator[None]:
    """An instance that is announced meanwhile."""
    words = ["announce", f"--store={store}", "--ttl=2", name, address]
    process = subprocess.Popen([*discovery_command(), *words], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_a_role_without_its_ground_is_skipped_unless_it_was_named(tmp_path: Path, etcd: Etcd) -> None:
    agent = Agent(tmp_path / "agent", etcd.url(3), "--address=127.0.0.1")
    agent.arguments = [each for each in agent.arguments if not each.startswith("--roles")]
    # The standard socket, but where no engine is.
    environment = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    with agent.with_environment(environment):
        assert "role_skipped role=registrator" in agent.log.read_text()
        assert agent.status("/readyz")[0] == 200


def test_an_agent_that_cannot_start_leaves_the_edge_alone(tmp_path: Path, etcd: Etcd, backend: str) -> None:
    etcd.ctl(3, "put", "/services/web/hosts/0", backend)
    with Agent(tmp_path / "agent", etcd.url(3), "--address=127.0.0.1") as agent:
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served")
        agent.kill()
        agent.arguments += ["--roles=registrator,dns,proxy", "--docker=unix:///nowhere/docker.sock"]
        agent.start(ready=False)
        assert agent.process
        assert agent.process.wait(30) == 1
        assert agent.get("/x", "web.x") == (200, "hello /x")


def test_an_engine_that_does_not_answer_is_waited_for(
    tmp_path: Path, etcd: Etcd, engine: DockerEngine, backend: str
) -> None:
    etcd.ctl(3, "put", "/services/web/hosts/0", backend)
    agent = Agent(
        tmp_path / "agent",
        etcd.url(3),
        "--address=127.0.0.1",
        f"--docker={engine.url}",
        roles="registrator,proxy,status",
    )
    engine.freeze()
    try:
        with agent:
            agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "the edge serves all the same")
            agent.wait(lambda: "event=source_unreachable" in agent.log.read_text(), "it says what is missing")
            engine.thaw()
            agent.wait(lambda: "event=source_recovered" in agent.log.read_text(), "it goes on by itself")
    finally:
        engine.thaw()


def test_a_role_alone_has_a_status_when_it_is_given_an_address(tmp_path: Path, etcd: Etcd) -> None:
    agent = Agent(tmp_path / "agent", etcd.url(3), "--address=127.0.0.1")
    agent.arguments[1] = "dns"
    agent.arguments = [each for each in agent.arguments if not each.startswith(("--roles", "--http"))]
    with agent:
        assert '"parts":{"dns":true,"store":true}' in agent.status("/readyz")[1]


def test_a_status_of_its_own_only_watches(tmp_path: Path, etcd: Etcd) -> None:
    with Agent(tmp_path / "agent", etcd.url(3), "--address=127.0.0.1", roles="status") as agent:
        etcd.ctl(3, "put", "/services/web/scheme", "http")
        agent.wait(lambda: '"name":"web"' in agent.status("/services")[1], "web is known")


def test_a_store_out_of_reach_at_start_is_waited_for_on_the_last_good_state(
    tmp_path: Path, etcd: Etcd, backend: str
) -> None:
    with Agent(tmp_path / "agent", etcd.url(3)) as agent:
        etcd.ctl(3, "put", "/services/web/hosts/0", backend)
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served")
        assert agent.stop() == 0
        etcd.kill()
        agent.start(ready=False)
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served from the last state")
        agent.wait(lambda: "event=store_unreachable" in agent.log.read_text(), "it says so")
        agent.wait(lambda: '"failing":["store"]' in agent.status("/readyz")[1], "only the store is missing")
        assert agent.status("/readyz")[0] == 503
        assert agent.status("/healthz")[0] == 200
        etcd.start()
        agent.wait(lambda: agent.status("/readyz")[0] == 200, "it is ready once the store is there")
        assert agent.get("/x", "web.x") == (200, "hello /x")


def test_a_store_out_of_reach_at_the_very_first_start_is_waited_for(
    tmp_path: Path, etcd: Etcd, backend: str
) -> None:
    etcd.ctl(3, "put", "/services/web/hosts/0", backend)
    etcd.kill()
    agent = Agent(tmp_path / "agent", etcd.url(3))
    try:
        agent.start(ready=False)
        agent.wait(lambda: "event=store_unreachable" in agent.log.read_text(), "it says so")
        etcd.start()
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served")
    finally:
        agent.__exit__()


@pytest.mark.parametrize("version", [3, 2])
def test_a_store_that_lost_everything_withdraws_nothing_for_one_ttl(
    tmp_path: Path, etcd: Etcd, version: int, backend: str
) -> None:
    with (
        Agent(tmp_path / "agent", etcd.url(version), "--ttl=30") as agent,
        announced(etcd.url(version), "web", backend),
    ):
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served")
        with Load(agent.http_port, "web.x") as load:
            etcd.kill()
            shutil.rmtree(etcd.directory / "data")
            etcd.start()
            agent.wait(lambda: "event=removals_held_back" in agent.log.read_text(), "the loss is seen")
            agent.wait(lambda: "/services/web/hosts/" in etcd.keys(version), "the key is put again")
            agent.wait(lambda: "/edges/" in etcd.keys(version), "and the edge's")
        assert load.failures == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_agent_with_all_that_is_its(
    tmp_path: Path, etcd: Etcd, number: signal.Signals
) -> None:
    with Agent(tmp_path / "agent", etcd.url(3)) as agent:
        agent.wait(lambda: "/edges/" in etcd.keys(3), "its edge is told of")
        assert agent.process
        agent.process.send_signal(number)
        assert agent.process.wait(30) == 0
        assert agent.haproxy_pids() == []
        assert "/edges/" not in etcd.keys(3)


def test_a_frozen_store_does_not_keep_a_signal_from_an_announced_command(etcd: Etcd) -> None:
    """`docker stop` kills after 10 s: the command must have been told well before."""
    words = ["announce", f"--store={etcd.url(3)}", "web", "127.0.0.1:8000", "--", "sleep", "100"]
    with subprocess.Popen([*discovery_command(), *words], stderr=subprocess.DEVNULL) as process:
        until(lambda: "/services/web/hosts/" in etcd.keys(3), "announced")
        etcd.freeze()
        process.terminate()
        try:
            assert process.wait(10) == 128 + signal.SIGTERM
        finally:
            etcd.thaw()


def test_haproxy_that_dies_is_started_again(tmp_path: Path, etcd: Etcd, backend: str) -> None:
    with Agent(tmp_path / "agent", etcd.url(3)) as agent:
        etcd.ctl(3, "put", "/services/web/hosts/0", backend)
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served")
        killed = agent.kill_haproxy()
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served again")
        assert killed not in agent.haproxy_pids()


def test_a_template_of_ones_own_is_watched_and_a_broken_one_changes_nothing(
    tmp_path: Path, etcd: Etcd, backend: str
) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    page = templates / "defaults.cfg.j2"
    with Agent(tmp_path / "agent", etcd.url(3), f"--templates={templates}") as agent:
        etcd.ctl(3, "put", "/services/web/hosts/0", backend)
        agent.wait(lambda: agent.get("/x", "web.x") == (200, "hello /x"), "web is served")
        packaged = run("render", f"--store={etcd.url(3)}", f"--state={agent.state_dir}").stdout
        page.write_text("{% if %}\n")
        agent.wait(lambda: f"{page}:1: " in agent.log.read_text(), "the broken line is named")
        assert agent.status("/readyz")[0] == 503
        assert agent.get("/x", "web.x") == (200, "hello /x")
        page.unlink()
        agent.wait(lambda: agent.status("/readyz")[0] == 200, "it is well again")
        assert run("render", f"--store={etcd.url(3)}", f"--state={agent.state_dir}").stdout == packaged


def test_generic_templates_are_written_and_reloaded(tmp_path: Path, etcd: Etcd, backend: str) -> None:
    source, dest, reloads = tmp_path / "hosts.j2", tmp_path / "hosts", tmp_path / "reloads"
    source.write_text(
        "#\n{% for service in services %}{{ service.name }} {{ getv('/motd', '') }}\n{% endfor %}"
    )
    file = tmp_path / "discovery.toml"
    file.write_text(
        f'[[template]]\nsrc = "{source}"\ndest = "{dest}"\nprefix = "/"\n'
        f'check_cmd = "test -s {{{{src}}}}"\nreload_cmd = "echo again >> {reloads}"\n'
    )
    with Agent(tmp_path / "agent", etcd.url(3), f"--config={file}", roles="status") as agent:
        etcd.ctl(3, "put", "/services/web/hosts/0", backend)
        etcd.ctl(3, "put", "/motd", "hello")
        agent.wait(lambda: dest.exists() and dest.read_text() == "#\nweb hello\n", "it is written")
        source.write_text("# {{ services | length }}\n")
        agent.wait(lambda: dest.read_text() == "# 1\n", "a changed template is rendered again")
        agent.wait(lambda: reloads.read_text().count("again") >= 2, "its reader was told")


def test_the_command_is_what_was_installed() -> None:
    assert run("--version").stdout.startswith("discovery, version ")
    assert Path(discovery_command()[0]).exists()
