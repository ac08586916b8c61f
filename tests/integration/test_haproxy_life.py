"""A real HAProxy through changes, failures and deaths: what ran goes on running."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from discovery.errors import ApplyError, ConfigError, RenderError
from discovery.haproxy.apply import HAProxy
from discovery.haproxy.runtime import Master, ask
from tests.lab.haproxy import (
    PATIENCE_SECONDS,
    TEMPLATES,
    VERSIONS,
    catalog,
    draining,
    echo,
    fetch,
    free_port,
    front_port,
    haproxy_binary,
    running,
    service,
    settings,
    until,
)


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


def servers(of: object) -> dict[str, str]:
    """The operational state, port and weight of each server in the running worker, by backend/server."""
    rows = ask(of.admin_socket, "show servers state", 10).splitlines()[2:]  # type: ignore[attr-defined]
    fields = [row.split() for row in rows if row]
    return {f"{f[1]}/{f[3]}": f"{f[5]} {f[18]} {f[7]}" for f in fields}


# ---- reloads ----------------------------------------------------------------------------------------


@contextmanager
def load(port: int, clients: int, keep_alive: bool) -> Iterator[list[str]]:
    """Clients that ask without pause; yields what went wrong, and ends with how much went well."""
    stop = threading.Event()
    failures: list[str] = []
    served = [0] * clients

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        while not stop.is_set():
            try:
                connection.request("GET", "/", headers={"Host": "web.local"})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    failures.append(f"status {response.status}")
                served[number] += 1
                if not keep_alive:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(served)


def test_reloads_lose_no_request(binary: str, tmp_path: Path) -> None:
    with echo() as one, echo() as two:
        of = settings(tmp_path, binary, spare_backends=0)
        with running(of, service("web", one, two)) as proxy:
            with load(front_port(of), 8, True) as kept, load(front_port(of), 4, False) as fresh:
                for number in range(10):
                    more = [service(f"other{n}", two) for n in range(number + 1)]
                    proxy.apply(catalog(service("web", one, two), *more, revision=number + 2))
            assert kept == []
            assert fresh == []
            assert proxy.status.reloads == {"start": 1, "service": 10}
            assert proxy.status.revision == 11


def test_applied_means_that_the_new_worker_alone_answers(binary: str, tmp_path: Path) -> None:
    with echo() as port:
        of = settings(tmp_path, binary)
        with running(of, service("web", port)) as proxy:
            for number in range(5):
                name = f"new{number}"
                proxy.apply(catalog(service(name, port)))
                assert fetch(front_port(of), host=name).status == 200
            assert fetch(front_port(of), host="web").status == 404


def test_the_same_catalog_is_no_reload(tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary("2.6"))
    with running(of, service("web", 1)) as proxy:
        proxy.apply(catalog(service("web", 1), revision=7))
        assert proxy.status.reloads == {"start": 1}
        assert proxy.status.revision == 7


def test_a_long_connection_survives_a_reload(binary: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:
        port = free_port()
        of = settings(tmp_path, binary)
        db = service("db", backend.getsockname()[1], scheme="tcp", host_port=port)
        with running(of, db) as proxy, socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"before")
            with accept_from(backend, b"before") as inside:
                proxy.apply(catalog(db, service("web", 1)))
                client.sendall(b"after")
                assert inside.recv(100) == b"after"


def test_a_peer_that_is_gone_without_a_word_is_asked_for(binary: str, tmp_path: Path) -> None:
    """As a node that loses its power: on both sides of a long connection the kernel looks after it."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        port, inside = free_port(), backend.getsockname()[1]
        of = settings(tmp_path, binary)
        with running(of, service("db", inside, scheme="tcp", host_port=port)), ExitStack() as stack:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"x")
            stack.enter_context(accept_from(backend, b"x"))
            for ours in (f"sport = :{port}", f"dport = :{inside}"):
                command = ["ss", "-tnoH", "state", "established", ours]
                shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                assert re.search(r"timer:\(keepalive,(2\d|30)", shown), shown


def accept_from(backend: socket.socket, first: bytes) -> socket.socket:
    """The connection that brings ``first``, past those of health checks."""
    backend.settimeout(PATIENCE_SECONDS)
    while True:
        connection, _ = backend.accept()
        connection.settimeout(PATIENCE_SECONDS)
        if connection.recv(len(first)) == first:
            return connection
        connection.close()


def test_server_state_is_carried_over_unless_the_server_moved(binary: str, tmp_path: Path) -> None:
    with echo() as port, echo() as other:
        of = settings(tmp_path, binary, spare_backends=0)
        dead = free_port()
        with running(of, service("web", dead, port)) as proxy:
            until(lambda: servers(of)["service:web/s1"] == f"0 {dead} 1", "found to be down")
            proxy.apply(catalog(service("web", dead, port), service("more", port)))
            assert servers(of)["service:web/s1"] == f"0 {dead} 1", "it is down without a new check"
            # HAProxy would keep the old port of a server of this name, and its state.
            proxy.apply(catalog(service("web", other, port)))
            assert servers(of)["service:web/s3"] == f"2 {other} 1"
            proxy.apply(catalog(service("web", other, port), service("more", port), service("again")))
            assert servers(of)["service:web/s3"] == f"2 {other} 1"
            assert "service:web/s1" not in servers(of)


def test_a_draining_instance_gets_no_new_request(binary: str, tmp_path: Path) -> None:
    with echo("old") as old, echo("new") as new:
        of = settings(tmp_path, binary)
        with running(of, service("web", old, new)) as proxy:
            assert {fetch(front_port(of), host="web").seen["server"] for _ in range(4)} == {"old", "new"}
            proxy.apply(catalog(draining(service("web", old, new))))
            assert {fetch(front_port(of), host="web").seen["server"] for _ in range(6)} == {"new"}


def test_a_dead_instance_of_two_costs_no_request(tmp_path: Path) -> None:
    with echo() as port:
        of = settings(tmp_path, haproxy_binary("2.6"))
        with running(of, service("web", free_port(), port)):
            answers = [fetch(front_port(of), host="web", method=m).status for m in ("GET", "POST") * 4]
            assert answers == [200] * 8


def test_one_that_accepts_and_closes_costs_no_request_and_repeats_none(binary: str, tmp_path: Path) -> None:
    """As docker-proxy does for a container that does not listen; a connect check finds nothing wrong."""
    posts: list[bytes] = []

    def hang_up() -> None:
        while True:
            try:
                connection, _ = backend.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(PATIENCE_SECONDS)
                with suppress(OSError):
                    posts.extend([head] if (head := connection.recv(4)) == b"POST" else [])

    with echo() as port, socket.create_server(("127.0.0.1", 0)) as backend:
        thread = threading.Thread(target=hang_up)
        thread.start()
        of = settings(tmp_path, binary)
        with running(of, service("web", backend.getsockname()[1], port)):
            assert {fetch(front_port(of), host="web").status for _ in range(8)} == {200}
            answers = [fetch(front_port(of), host="web", method="POST") for _ in range(8)]
        backend.shutdown(socket.SHUT_RDWR)
        thread.join()
    served = sum(answer.status == 200 for answer in answers)
    assert served + len(posts) == len(answers)
    assert served and posts


# ---- ports ------------------------------------------------------------------------------------------


def test_a_port_in_use_is_left_out_and_taken_when_free(binary: str, tmp_path: Path) -> None:
    with echo() as port, ExitStack() as other:
        of = settings(tmp_path, binary)
        with running(of, service("web", port)) as proxy:
            foreign = other.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            good = free_port()
            wanted = catalog(
                service("web", port, host_port=foreign), service("db", port, scheme="tcp", host_port=good)
            )
            (problem,) = proxy.apply(wanted)
            assert problem.service == "web"
            assert f"port {foreign} is used by another program" in problem.reason
            assert fetch(front_port(of), host="web").status == 200
            assert fetch(good, "/x").seen["path"] == "/x"
            other.close()
            assert proxy.apply(wanted) == ()
            assert fetch(foreign, "/y", "web").seen["path"] == "/y"
            # Its own port is not in its way.
            assert proxy.apply(catalog(*wanted.services.values(), service("more"))) == ()
            proxy.apply(catalog(service("web", port)))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", good))


def test_a_host_port_that_is_ours_is_refused(tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary("2.6"), reserved_ports={5353: "dns.listen"})
    with running(of) as proxy:
        problems = proxy.apply(catalog(service("a", host_port=front_port(of)), service("b", host_port=5353)))
        assert [each.reason for each in problems] == [
            f"port {front_port(of)} is used by proxy.http",
            "port 5353 is used by dns.listen",
        ]


def test_the_common_port_in_use_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        proxy = HAProxy(settings(tmp_path, haproxy_binary("2.6"), http=(address,)))
        proxy.start()
        try:
            with pytest.raises(ApplyError, match=rf"proxy\.http: {address} is used by another program"):
                proxy.apply(catalog())
            assert not proxy.status.running
        finally:
            proxy.stop()


def test_the_common_address_may_change_at_a_restart(tmp_path: Path) -> None:
    """HAProxy's former listener on the same port is not in the way of the new one."""
    port = free_port()
    first = HAProxy(settings(tmp_path, haproxy_binary("2.6"), http=(f"*:{port}",)))
    first.start()
    first.apply(catalog())
    first.stop(leave_running=True)
    with running(settings(tmp_path, haproxy_binary("2.6"), http=(f"127.0.0.1:{port}",))) as proxy:
        assert proxy.status.reloads == {"adopted": 1}
        assert fetch(port, host="x").status == 404


# ---- templates and refused configurations -----------------------------------------------------------


def test_a_template_of_the_users_own_is_taken_up_when_saved(tmp_path: Path) -> None:
    own = tmp_path / "own"
    of = settings(tmp_path / "state", haproxy_binary("2.6"), templates=(own, TEMPLATES))
    changed = threading.Event()
    proxy = HAProxy(of, changed.set)
    proxy.start()
    try:
        wanted = catalog(service("web"))
        proxy.apply(wanted)

        def save(text: str) -> None:
            changed.clear()
            own.mkdir(exist_ok=True)
            (own / "edge.cfg.j2").write_text(text)
            assert changed.wait(PATIENCE_SECONDS)

        packaged = (TEMPLATES / "edge.cfg.j2").read_text()
        mine = packaged.replace(
            "    use_backend", "    http-after-response set-header X-Mine 1\n    use_backend"
        )
        save(mine)
        proxy.apply(wanted)
        assert fetch(front_port(of), host="web").headers["x-mine"] == "1"
        assert proxy.status.reloads == {"start": 1, "templates": 1}

        save(mine + "\n{% if %}")
        with pytest.raises(RenderError, match=rf"{own}/edge.cfg.j2:{mine.count(chr(10)) + 2}: "):
            proxy.apply(wanted)
        save(mine + "\n{{ nonsense }}")
        with pytest.raises(RenderError, match=rf"{own}/edge.cfg.j2:\d+: 'nonsense' is undefined"):
            proxy.apply(wanted)
        save(mine + "\n    nonsense\n")
        with pytest.raises(ApplyError, match=r"refuses .*candidate/haproxy\.cfg:\d+.*nonsense"):
            proxy.apply(wanted)
        assert fetch(front_port(of), host="web").headers["x-mine"] == "1"

        save(packaged)
        proxy.apply(wanted)
        assert "x-mine" not in fetch(front_port(of), host="web").headers
    finally:
        proxy.stop()


def edge_with(line: str) -> str:
    """The packaged frontend with one more line."""
    return (TEMPLATES / "edge.cfg.j2").read_text().replace("    # ", f"    {line}\n    # ", 1)


def test_a_reload_that_fails_leaves_the_former_worker_serving(binary: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with echo() as port:
        of = settings(tmp_path / "state", binary, templates=(own, TEMPLATES))
        with running(of, service("web", port)) as proxy:
            pid = proxy.status.pid
            # This passes HAProxy's check, and fails when it is loaded.
            (own / "edge.cfg.j2").write_text(edge_with("bind /nowhere/at/all.sock"))
            proxy._controller.templates_changed()
            for _ in range(2):
                with pytest.raises(ApplyError, match=r"reload failed: .*cannot bind"):
                    proxy.apply(catalog(service("web", port), service("api", port)))
                assert fetch(front_port(of), host="web").status == 200
                # What can be changed without a reload does not wait for one.
                assert fetch(front_port(of), host="api").status == 200
            (own / "edge.cfg.j2").unlink()
            proxy._controller.templates_changed()
            proxy.apply(catalog(service("web", port), service("api", port)))
            assert fetch(front_port(of), host="api").status == 200
            assert proxy.status.pid == pid


def test_what_is_on_disk_is_never_ahead_of_what_was_loaded(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with echo() as port:
        of = settings(tmp_path / "state", haproxy_binary("2.6"), templates=(own, TEMPLATES))
        with running(of, service("web")) as proxy:
            (own / "edge.cfg.j2").write_text(edge_with("nonsense"))
            proxy._controller.templates_changed()
            with pytest.raises(ApplyError, match="nonsense"):
                proxy.apply(catalog(service("web", port)))
            assert fetch(front_port(of), host="web").status == 200
            proxy._controller.follow()
            assert "nonsense" not in of.config.read_text()
            (own / "edge.cfg.j2").unlink()
            proxy._controller.templates_changed()
            proxy.apply(catalog(service("web", port)))
            proxy._controller.follow()
            assert f"127.0.0.1:{port}" in of.config.read_text()


def test_a_templates_own_port_in_use_never_reaches_haproxy(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        of = settings(tmp_path / "state", haproxy_binary("2.6"), templates=(own, TEMPLATES))
        with running(of) as proxy:
            (own / "edge.cfg.j2").write_text(edge_with(f"bind 127.0.0.1:{foreign.getsockname()[1]}"))
            proxy._controller.templates_changed()
            with pytest.raises(ApplyError, match=r"haproxy\.cfg: 127.* is used by another program"):
                proxy.apply(catalog())
            assert Master(of.master_socket).processes().reloads == 0


# ---- deaths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_a_killed_process_is_replaced(binary: str, victim: str, tmp_path: Path) -> None:
    with echo() as port:
        of = settings(tmp_path, binary)
        host_port = free_port()
        with running(of, service("web", port, host_port=host_port)) as proxy:
            processes = Master(of.master_socket).processes()
            os.kill(processes.master if victim == "master" else processes.workers[0], signal.SIGKILL)
            until(lambda: proxy.status.reloads.get("ended"), "HAProxy started again")
            assert proxy.status.pid not in (None, processes.master)
            assert fetch(front_port(of), host="web").status == 200
            assert fetch(host_port, host="x").status == 200
            proxy.apply(catalog(service("web", port), service("api", port)))
            assert fetch(front_port(of), host="api").status == 200


def test_killed_while_another_program_takes_a_port(tmp_path: Path) -> None:
    """The last good configuration cannot be started then; the rest of it is."""
    with echo() as port:
        of = settings(tmp_path, haproxy_binary("2.6"))
        host_port = free_port()
        proxy = HAProxy(of)
        proxy.start()
        try:
            wanted = catalog(service("web", port, host_port=host_port))
            proxy.apply(wanted)
            os.kill(proxy.status.pid or 0, signal.SIGKILL)
            proxy._engine.clear()
            with socket.create_server(("127.0.0.1", host_port)):
                proxy._mend()
                assert fetch(front_port(of), host="web").status == 200
                assert len(proxy.apply(wanted)) == 1
            assert proxy.apply(wanted) == ()
        finally:
            proxy.stop()


def test_killed_while_nothing_can_be_written(tmp_path: Path) -> None:
    """As on a full disk: it is started without the servers' state."""
    with echo() as port:
        of = settings(tmp_path, haproxy_binary("2.6"))
        with running(of, service("web", port)) as proxy:
            of.server_state.unlink(missing_ok=True)
            of.server_state.mkdir()
            os.kill(proxy.status.pid or 0, signal.SIGKILL)
            until(lambda: proxy.status.reloads.get("ended"), "HAProxy started again")
            assert fetch(front_port(of), host="web").status == 200


AGENT = """
import json, pathlib, sys
from tests.lab.haproxy import *
of = settings(pathlib.Path(sys.argv[1]), sys.argv[2], http=(sys.argv[3],))
proxy = HAProxy(of)
proxy.start()
proxy.apply(catalog(service("web", int(sys.argv[4]))))
print(json.dumps(proxy.status.pid), flush=True)
sys.stdin.read()
"""


def test_a_killed_agents_haproxy_serves_on_and_is_taken_over(binary: str, tmp_path: Path) -> None:
    with echo() as port:
        of = settings(tmp_path, binary)
        agent = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(tmp_path), binary, of.http[0], str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "DISCOVERY_STORE_PASSWORD": "hunter2"},
        )
        with agent, load_when_ready(agent, front_port(of)) as (pid, clients):
            agent.kill()
            agent.wait()
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
            with running(of, service("web", port)) as proxy:
                assert proxy.status.pid == pid
                assert proxy.status.reloads == {}, "it ran already what it should"
                proxy.apply(catalog(service("web", port), service("api", port)))
                assert fetch(front_port(of), host="api").status == 200
                assert proxy.status.pid == pid
                clients.close()


@contextmanager
def load_when_ready(agent: "subprocess.Popen[bytes]", port: int) -> Iterator[tuple[int, ExitStack]]:
    """The pid of the HAProxy that an agent has started, and a load on it until the stack is closed."""
    assert agent.stdout is not None
    lines = iter(agent.stdout.readline, b"")
    pid = next(json.loads(line) for line in lines if line.strip().isdigit())
    with ExitStack() as stack:
        failures = stack.enter_context(load(port, 2, False))
        yield pid, stack
    assert failures == []


def test_an_agent_that_left_its_haproxy_finds_it(tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary("2.6"))
    first = HAProxy(of)
    first.start()
    first.apply(catalog(service("web")))
    pid = first.status.pid
    first.stop(leave_running=True)
    second = HAProxy(of)
    second.start()
    assert second.status.pid == pid
    second.stop()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in state_of(pid), "HAProxy ended")


def state_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- beginnings -------------------------------------------------------------------------------------


def stopped(of: object, *services: object) -> None:
    """Leave the state directory of a proxy that served these and was stopped."""
    with running(of, *services):  # type: ignore[arg-type]
        pass


def test_starts_on_the_last_good_configuration_without_a_catalog(tmp_path: Path) -> None:
    with echo() as port:
        of = settings(tmp_path, haproxy_binary("2.6"))
        stopped(of, service("web", port))
        with pytest.raises(ConnectionRefusedError):
            fetch(front_port(of))
        proxy = HAProxy(of)
        proxy.start()
        try:
            assert fetch(front_port(of), host="web").status == 200
            assert proxy.status.revision is None
        finally:
            proxy.stop()


def corrupt(of: object) -> None:
    (of.directory / "good" / "haproxy.cfg").write_text("nonsense\n")  # type: ignore[attr-defined]


def remove_maps(of: object) -> None:
    (of.directory / "good" / "hosts.map").unlink()  # type: ignore[attr-defined]


def remove_generation(of: object) -> None:
    shutil.rmtree(of.directory / "generations")  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", [corrupt, remove_maps, remove_generation])
def test_a_damaged_last_good_configuration_is_replaced(
    tmp_path: Path, damage: Callable[[object], None]
) -> None:
    with echo() as port:
        of = settings(tmp_path, haproxy_binary("2.6"))
        stopped(of, service("web", port))
        damage(of)
        with running(of, service("web", port)):
            assert fetch(front_port(of), host="web").status == 200


def test_two_agents_cannot_share_a_state_directory(tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary("2.6"))
    with running(of), pytest.raises(ConfigError, match=r"state_dir: another agent"):
        HAProxy(of).start()


def test_sockets_are_private_and_workers_unprivileged(tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary("2.6"))
    with running(of):
        modes = [path.stat().st_mode & 0o777 for path in (of.directory, of.master_socket, of.admin_socket)]
        assert modes == [0o700, 0o600, 0o600]
        worker = Master(of.master_socket).processes().workers[0]
        if os.geteuid() == 0:
            assert Path(f"/proc/{worker}").stat().st_uid != 0
