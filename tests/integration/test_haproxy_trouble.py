"""What goes wrong around changes at runtime: deaths, full disks, strangers' hands, bad timing."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Attributes, Catalog, Instance, Service
from discovery.errors import ApplyError, DiscoveryError
from discovery.haproxy.apply import HAProxy
from discovery.haproxy.engine import OldWorker
from discovery.haproxy.runtime import Master
from discovery.haproxy.settings import HeldPorts, ProxySettings
from tests.lab.haproxy import (
    PATIENCE_SECONDS,
    TEMPLATES,
    VERSIONS,
    catalog,
    echo,
    fetch,
    free_port,
    front_port,
    haproxy_binary,
    running,
    settings,
    until,
)
from tests.lab.worker_state import assert_worker_is_as, map_of, tell, up, worker_pid


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


@pytest.fixture(scope="module")
def one() -> Iterator[int]:
    with echo("one", host="0.0.0.0") as port:
        yield port


@pytest.fixture(scope="module")
def two() -> Iterator[int]:
    with echo("two", host="0.0.0.0") as port:
        yield port


def lead_to(name: str, *ports: int, options: Any = None, **more: Any) -> Service:
    """A service with an instance at each port, which is its id too."""
    instances = tuple(Instance(str(port), "127.0.0.1", port) for port in ports)
    return Service(name, more.pop("scheme", "http"), instances=instances, options=options or {}, **more)


def on_disk(of: ProxySettings) -> dict[str, str]:
    """The last good files."""
    return {each.name: each.read_text() for each in (of.directory / "good").iterdir()}


def look(proxy: HAProxy) -> None:
    """Have the proxy look after HAProxy as it does every half a minute."""
    proxy._audited = -1e9
    proxy._look_after()


# ---- deaths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["worker", "master"])
def test_after_a_death_it_is_as_it_was_changed_to_at_runtime(
    binary: str, victim: str, one: int, two: int, tmp_path: Path
) -> None:
    held = free_port()
    of = settings(tmp_path, binary, held_ports=(HeldPorts("tcp", held, held),))
    with running(of, lead_to("web", one), lead_to("old", one)) as proxy:
        wanted = catalog(
            lead_to("web", two, one, options={"path": "keep", "hosts": "a.example.com", "weight": "3"}),
            lead_to("new", two),
            lead_to("db", two, scheme="tcp", host_port=held),
        )
        proxy.apply(wanted)
        assert proxy.status.reloads == {"start": 1}
        until(lambda: "service:new" in on_disk(of)["backends.map"], "the disk follows")
        processes = Master(of.master_socket).processes()
        os.kill(processes.workers[0] if victim == "worker" else processes.master, signal.SIGKILL)
        until(lambda: proxy.status.reloads.get("ended"), "HAProxy started again")
        assert_worker_is_as(of, wanted)
        assert fetch(held).seen["server"] == "two"
        proxy.apply(wanted)
        assert proxy.status.reloads == {"start": 1, "ended": 1}
        wanted = catalog(lead_to("web", one), lead_to("more", two))
        proxy.apply(wanted)
        assert proxy.status.reloads == {"start": 1, "ended": 1}
        assert_worker_is_as(of, wanted)


AGENT = """
import pathlib, sys
from tests.integration.test_haproxy_trouble import *
of, first, then = stories(pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
proxy = HAProxy(of)
proxy.start()
proxy.apply(first)
before = on_disk(of)
proxy.apply(then)
assert proxy.status.reloads == {"start": 1}, proxy.status
assert on_disk(of) == before, "the disk does not follow by itself"
print("done", flush=True)
sys.stdin.read()
"""


def stories(
    directory: Path, binary: str, front: int, own: int, port: int
) -> tuple[ProxySettings, Catalog, Catalog]:
    """Settings, a catalog, and the one that an agent changed to at runtime before it was killed."""
    first = (lead_to("web", port, host_port=own), lead_to("old", port))
    # The servers are the same, so that nothing but maps and a listener tells the one from the other.
    then = (lead_to("web", port, options={"path": "keep", "hosts": "a.example.com"}), lead_to("old", port))
    return settings(directory, binary, http=(f"127.0.0.1:{front}",)), catalog(*first), catalog(*then)


@pytest.mark.parametrize("comes", ["what was changed to", "what is on disk"])
def test_an_agent_killed_before_the_disk_followed(binary: str, comes: str, one: int, tmp_path: Path) -> None:
    ports = [free_port(), free_port(), one]
    command = [sys.executable, "-c", AGENT, str(tmp_path), binary, *map(str, ports)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert any(line == b"done\n" for line in agent.stdout)
        agent.kill()
    of, first, then = stories(tmp_path, binary, *ports)
    wanted = then if comes == "what was changed to" else first
    with running(of, *wanted.services.values()) as proxy:
        assert_worker_is_as(of, wanted)
        assert sum(proxy.status.reloads.values()) <= 1
        assert fetch(ports[0], "/web/x").seen["path"] == ("/web/x" if wanted is then else "/x")


# ---- disks ------------------------------------------------------------------------------------------


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False, timeout=20).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True, timeout=20)


def fill(directory: Path) -> Path:
    """Leave no room on the file system of a directory; the file that takes it all."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def test_a_full_disk_stops_no_change_but_reloads(binary: str, one: int, two: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as directory, ExitStack() as stack:
        of = settings(directory, binary)
        proxy = stack.enter_context(running(of, lead_to("web", one)))
        before = on_disk(of)
        filler = fill(directory)
        changed = catalog(lead_to("web", two), lead_to("new", one))
        proxy.apply(changed)
        assert_worker_is_as(of, changed)
        # One that takes a reload waits, and nothing else with it.
        needs = lead_to("fancy", one, options={"balance": "leastconn"})
        for ports in ((one,), (two, one), (two,)):
            now = catalog(lead_to("web", *ports), lead_to("new", *ports))
            with pytest.raises(ApplyError, match="No space left"):
                proxy.apply(catalog(*now.services.values(), needs))
            assert_worker_is_as(of, now)
            assert fetch(front_port(of), host="web").status == 200
        assert on_disk(of) == before
        assert proxy.status.reloads == {"start": 1}
        filler.unlink()
        wanted = catalog(*now.services.values(), needs)
        proxy.apply(wanted)
        assert_worker_is_as(of, wanted)
        assert proxy.status.reloads == {"start": 1, "service": 1}
        wanted = catalog(lead_to("web", one), lead_to("last", one))
        proxy.apply(wanted)
        until(lambda: "service:last" in on_disk(of)["backends.map"], "the disk follows again")


def test_a_state_that_cannot_be_written_stops_no_change_but_reloads(
    one: int, two: int, tmp_path: Path
) -> None:
    """There may be room for the one file and none for the other."""
    of = settings(tmp_path, haproxy_binary("2.6"))
    with running(of, lead_to("web", one)) as proxy:
        of.server_state.unlink()
        of.server_state.mkdir()
        needs = lead_to("fancy", one, options={"balance": "leastconn"})
        for ports in ((two,), (two, one)):
            with pytest.raises(ApplyError, match="server-state: cannot be written"):
                proxy.apply(catalog(lead_to("web", *ports), needs))
            assert_worker_is_as(of, catalog(lead_to("web", *ports)))
        of.server_state.rmdir()
        wanted = catalog(lead_to("web", two, one), needs)
        proxy.apply(wanted)
        assert_worker_is_as(of, wanted)
        assert proxy.status.reloads == {"start": 1, "service": 1}


def test_a_full_disk_and_a_death(binary: str, one: int, two: int, tmp_path: Path) -> None:
    """It comes up as it was written last, and is changed to what is wanted, all without a byte of room."""
    with small_disk(tmp_path / "small") as directory, ExitStack() as stack:
        of = settings(directory, binary)
        proxy = stack.enter_context(running(of, lead_to("web", one)))
        filler = fill(directory)
        wanted = catalog(lead_to("web", two))
        proxy.apply(wanted)
        os.kill(proxy.status.pid or 0, signal.SIGKILL)
        until(lambda: proxy.status.reloads.get("ended"), "HAProxy started again")
        assert fetch(front_port(of), host="web").status == 200
        filler.unlink()
        proxy.apply(wanted)
        assert_worker_is_as(of, wanted)


# ---- templates --------------------------------------------------------------------------------------


def test_changes_beside_a_broken_template_are_not_forgotten(one: int, two: int, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    of = settings(tmp_path / "state", haproxy_binary("2.6"), templates=(own, TEMPLATES))
    with running(of, lead_to("web", one)) as proxy:
        (own / "edge.cfg.j2").write_text("{{ nonsense }}")
        proxy._controller.templates_changed()
        steps = (
            [lead_to("web", one), lead_to("new", two)],
            [lead_to("web", two)],
            [lead_to("web", two), lead_to("other", one)],
            [lead_to("web", one), lead_to("other", one), lead_to("new", two)],
        )
        for services in steps:
            with pytest.raises(DiscoveryError, match="'nonsense' is undefined"):
                proxy.apply(catalog(*services))
            assert_worker_is_as(of, catalog(*services))
        assert proxy.status.reloads == {"start": 1}


# ---- ports ------------------------------------------------------------------------------------------


class Engine:
    """The engine of a proxy, with something that happens before it reloads."""

    def __init__(self, proxy: HAProxy, before_reload: Callable[[], None]) -> None:
        self._engine = proxy._controller._engine
        self._before_reload = before_reload
        proxy._controller._engine = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def reload(self) -> None:
        self._before_reload()
        self._engine.reload()


def test_nobody_takes_a_port_between_the_test_and_the_bind(binary: str, one: int, tmp_path: Path) -> None:
    of, port = settings(tmp_path, binary), free_port()
    outcomes: list[str] = []

    def steal() -> None:
        try:
            socket.create_server(("127.0.0.1", port)).close()
            outcomes.append("stolen")
        except OSError:
            outcomes.append("kept")

    with running(of, lead_to("web", one)) as proxy:
        Engine(proxy, steal)
        assert proxy.apply(catalog(lead_to("web", one, host_port=port))) == ()
        assert outcomes == ["kept"]
        assert fetch(port).seen["server"] == "one"


def test_a_port_that_is_taken_after_the_first_look_is_left_out(binary: str, one: int, tmp_path: Path) -> None:
    of, port = settings(tmp_path, binary), free_port()
    with running(of, lead_to("web", one)) as proxy, ExitStack() as foreign:
        prepare = proxy._disk.prepare

        @contextmanager
        def steal(*arguments: Any, **more: Any) -> Iterator[Any]:
            foreign.enter_context(socket.create_server(("127.0.0.1", port)))
            with prepare(*arguments, **more) as written:
                yield written

        proxy._disk.prepare = steal  # type: ignore[method-assign]
        fancy = lead_to("fancy", one, options={"balance": "leastconn"})
        wanted = catalog(lead_to("web", one, host_port=port), fancy)
        (problem,) = proxy.apply(wanted)
        assert (problem.service, "is used by another program" in problem.reason) == ("web", True)
        assert_worker_is_as(of, catalog(lead_to("web", one), fancy))
        proxy._disk.prepare = prepare  # type: ignore[method-assign]
        assert len(proxy.apply(wanted)) == 1
        foreign.close()
        assert proxy.apply(wanted) == ()
        assert_worker_is_as(of, wanted)


# ---- strangers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("notices", ["audit", "change"])
def test_somebody_else_reloads(binary: str, notices: str, one: int, two: int, tmp_path: Path) -> None:
    of = settings(tmp_path, binary)
    with running(of, lead_to("web", one), lead_to("old", one)) as proxy:
        wanted = catalog(lead_to("web", two), lead_to("new", two))
        proxy.apply(wanted)
        worker = worker_pid(of)
        os.kill(proxy.status.pid or 0, signal.SIGUSR2)
        until(lambda: worker_pid_or_none(of) not in (None, worker), "another worker")
        if notices == "audit":
            look(proxy)
        else:
            wanted = catalog(lead_to("web", one, two), lead_to("newer", two))
        proxy.apply(wanted)
        assert_worker_is_as(of, wanted)
        for name in wanted.services:
            assert fetch(front_port(of), host=name).status == 200
        proxy.apply(wanted)
        assert sum(proxy.status.reloads.values()) == 2


def worker_pid_or_none(of: ProxySettings) -> int | None:
    try:
        return worker_pid(of)
    except (ApplyError, AssertionError):
        return None


HANDS = {
    "maintenance": "set server service:web/s1 state maint",
    "address": "set server service:web/s1 addr 127.0.0.9 port 1",
    "weight": "set server service:web/s1 weight 0",
    "spare server": "set server {spare}/s1 state maint",
    "more servers": "add server service:web/s9 127.0.0.9:1; set server service:web/s9 state ready",
    "a host gone": "del map hosts.map web",
    "a host too many": "add map hosts.map stranger web",
    "a host led astray": "set map hosts.map web new",
    "a host twice": "add map hosts.map web new",
    "a section led astray": "set map backends.map web {spare}",
    "paths gone": "clear map paths.map",
    "a path kept": "add map keep.map web keep",
    "a listener": "disable frontend port:{port}",
    "the common listener": "disable frontend edge",
}


def test_what_somebody_does_by_hand_is_mended(binary: str, one: int, two: int, tmp_path: Path) -> None:
    of, port = settings(tmp_path, binary), free_port()
    web = lead_to("web", one, host_port=port)
    with running(of, web) as proxy:
        wanted = catalog(web, lead_to("new", two))
        proxy.apply(wanted)
        spare = map_of(of, "backends.map")["new"]
        assert spare.startswith("spare:")
        for what, commands in HANDS.items():
            tell(of, commands.format(spare=spare, port=port))
            proxy._controller.audit()
            proxy.apply(wanted)
            assert_worker_is_as(of, wanted)
            assert fetch(front_port(of), host="web").seen["server"] == "one", what
            assert fetch(port).seen["server"] == "one", what
            assert fetch(front_port(of), host="new").seen["server"] == "two", what
        assert proxy.status.reloads == {"start": 1}


def test_a_strange_server_is_mended_by_a_reload(one: int, tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary("2.6"))
    with running(of, lead_to("web", one)) as proxy:
        tell(of, "add server service:web/mine 127.0.0.9:1; set server service:web/mine state ready")
        wanted = catalog(lead_to("web", one))
        for _ in range(2):
            proxy._controller.audit()
            proxy.apply(wanted)
            assert_worker_is_as(of, wanted)
        assert proxy.status.reloads == {"start": 1, "unverified": 1}


def test_a_change_that_meets_a_strangers_is_made_all_the_same(
    binary: str, one: int, two: int, tmp_path: Path
) -> None:
    """What a command was to change is not there any more, or there already."""
    of = settings(tmp_path, binary)
    shop = {"hosts": "shop.example.com"}
    with running(of, lead_to("api", one, options=shop), lead_to("web", two)) as proxy:
        tell(of, "del map hosts.map shop.example.com")
        wanted = catalog(lead_to("api", one), lead_to("web", two, options=shop))
        proxy.apply(wanted)
        assert_worker_is_as(of, wanted)
        tell(of, "add server service:web/s2 127.0.0.9:1")
        wanted = catalog(lead_to("api", one), lead_to("web", two, one, options=shop))
        proxy.apply(wanted)
        assert_worker_is_as(of, wanted)


# ---- time -------------------------------------------------------------------------------------------


def test_a_worker_that_stands_still_for_a_moment(binary: str, one: int, two: int, tmp_path: Path) -> None:
    of = settings(tmp_path, binary)
    with running(of, lead_to("web", one)) as proxy:
        worker = worker_pid(of)
        wanted = catalog(lead_to("web", two), lead_to("new", one))
        os.kill(worker, signal.SIGSTOP)
        thread = threading.Thread(target=proxy.apply, args=(wanted,))
        try:
            thread.start()
            until(proxy._lock.locked, "the change began")
        finally:
            os.kill(worker, signal.SIGCONT)
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        assert_worker_is_as(of, wanted)
        assert proxy.status.reloads == {"start": 1}


def test_a_worker_that_hangs_is_replaced_and_ended(one: int, two: int, tmp_path: Path) -> None:
    """While it listens it takes a share of all new connections, and answers none."""
    of = settings(tmp_path, haproxy_binary("2.6"), start_timeout_seconds=3.0)
    with running(of, lead_to("web", one)) as proxy:
        worker = worker_pid(of)
        wanted = catalog(lead_to("web", two), lead_to("fancy", one, options={"balance": "leastconn"}))
        Engine(proxy, lambda: os.kill(worker, signal.SIGSTOP))
        proxy._engine.master = Master(of.master_socket, 0.3)  # type: ignore[union-attr]
        proxy.apply(wanted)
        assert worker_pid(of) != worker
        until(lambda: not Path(f"/proc/{worker}").exists(), "ended")
        assert_worker_is_as(of, wanted)
        assert all(fetch(front_port(of), host="web").seen["server"] == "two" for _ in range(8))
        assert proxy.status.reloads == {"start": 1, "service": 1}


def test_a_change_during_a_reload_goes_to_the_new_worker(
    binary: str, one: int, two: int, tmp_path: Path
) -> None:
    of = settings(tmp_path, binary)
    reloading, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reloading.set()
        assert go_on.wait(PATIENCE_SECONDS)

    with running(of, lead_to("web", one)) as proxy:
        Engine(proxy, wait)
        worker = worker_pid(of)
        fancy = lead_to("fancy", one, options={"balance": "leastconn"})
        wanted = catalog(lead_to("web", two), fancy, lead_to("new", two))
        first = threading.Thread(target=proxy.apply, args=(catalog(lead_to("web", one), fancy),))
        second = threading.Thread(target=proxy.apply, args=(wanted,))
        first.start()
        assert reloading.wait(PATIENCE_SECONDS)
        second.start()
        before = tell(of, "show servers state")
        assert worker_pid(of) == worker
        go_on.set()
        for thread in (first, second):
            thread.join(PATIENCE_SECONDS)
        assert str(two) not in before
        assert worker_pid(of) != worker
        assert_worker_is_as(of, wanted)
        assert proxy.status.reloads == {"start": 1, "service": 1}


# ---- old workers, spare sections, state -------------------------------------------------------------


def test_old_workers_are_bounded_and_shown_with_what_pins_them(binary: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend, ExitStack() as clients:
        port = free_port()
        of = settings(tmp_path, binary, max_reloads=3)
        db = lead_to("db", backend.getsockname()[1], scheme="tcp", host_port=port)
        with running(of, db) as proxy:
            for number in range(5):
                clients.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"x")
                until(lambda: "be=service:db" in tell(of, "show sess"), "connected")
                options = {"balance": ("leastconn", "source")[number % 2]}
                proxy.apply(catalog(db, lead_to("web", options=options)))
            until(lambda: len(Master(of.master_socket).processes().old_workers) <= 3, "bounded")
            look(proxy)
            shown = until(lambda: proxy.status.old_workers, "shown")
            assert 1 <= len(shown) <= 3
            assert all(each.backends[0][0] == "service:db" and each.connections for each in shown)
            clients.close()
            backend.close()


def test_an_old_worker_that_does_not_answer_is_shown(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend, ExitStack() as clients:
        port = free_port()
        of = settings(tmp_path, haproxy_binary("2.6"))
        db = lead_to("db", backend.getsockname()[1], scheme="tcp", host_port=port)
        with running(of, db) as proxy:
            clients.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"x")
            until(lambda: "be=service:db" in tell(of, "show sess"), "connected")
            worker = worker_pid(of)
            proxy.apply(catalog(db, lead_to("web", options={"balance": "source"})))
            os.kill(worker, signal.SIGSTOP)
            clients.callback(os.kill, worker, signal.SIGKILL)
            proxy._engine.master = Master(of.master_socket, 0.3)  # type: ignore[union-attr]
            look(proxy)
            until(lambda: proxy.status.old_workers == (OldWorker(worker),), "shown")


def test_spare_sections_are_refilled_by_one_quiet_reload(binary: str, one: int, tmp_path: Path) -> None:
    of = settings(tmp_path, binary, spare_backends=4)
    with running(of, lead_to("web", one)) as proxy:
        for number in range(1, 4):
            proxy.apply(catalog(*(lead_to(f"new{n}", one) for n in range(number))))
        assert proxy.status.reloads == {"start": 1}
        four = catalog(*(lead_to(f"new{n}", one) for n in range(4)))
        for _ in range(3):
            proxy.apply(four)
        assert proxy.status.reloads == {"start": 1, "spares": 1}
        assert_worker_is_as(of, four)
        assert set(map_of(of, "backends.map").values()) == {f"service:new{n}" for n in range(4)}
        seven = catalog(*(lead_to(f"new{n}", one) for n in range(7)))
        proxy.apply(seven)
        assert_worker_is_as(of, seven)
        assert proxy.status.reloads == {"start": 1, "spares": 1}


def test_state_goes_with_a_service_from_its_spare_section_to_its_own(
    binary: str, one: int, tmp_path: Path
) -> None:
    of, dead = settings(tmp_path, binary), free_port()
    with running(of) as proxy:
        instances = (
            Instance("dead", "127.0.0.1", dead),
            Instance("heavy", "127.0.0.1", one, Attributes(weight=7)),
        )
        new = Service("new", instances=instances)
        proxy.apply(catalog(new))
        until(lambda: up(of, "new")[f"127.0.0.1:{dead}"] is False, "found to be down")
        wanted = catalog(new, lead_to("fancy", one, options={"balance": "leastconn"}))
        proxy.apply(wanted)
        assert map_of(of, "backends.map")["new"] == "service:new"
        assert up(of, "new") == {f"127.0.0.1:{dead}": False, f"127.0.0.1:{one}": True}
        assert_worker_is_as(of, wanted)
        assert proxy.status.reloads == {"start": 1, "service": 1}


def test_a_held_port_that_is_in_use_is_told_and_taken_when_free(
    binary: str, one: int, tmp_path: Path
) -> None:
    with ExitStack() as foreign:
        taken = foreign.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        of = settings(tmp_path, binary, held_ports=(HeldPorts("tcp", taken, taken),))
        with running(of, lead_to("web", one)) as proxy:
            wanted = catalog(lead_to("web", one), lead_to("db", one, scheme="tcp", host_port=taken))
            for _ in range(2):
                (problem,) = proxy.apply(wanted)
                assert problem.service == "db"
                assert problem.reason == f"port {taken} is used by another program on this host"
            assert proxy.status.reloads == {"start": 1}
            foreign.close()
            for _ in range(2):
                assert proxy.apply(wanted) == ()
            assert fetch(taken).seen["server"] == "one"
            assert_worker_is_as(of, wanted)
            assert sum(proxy.status.reloads.values()) == 2
