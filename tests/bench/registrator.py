"""The registrator on a large node, and on many nodes.

    python -m tests.bench.registrator [node] [fleet] [--containers 1000] [--nodes 500] [--full 20]

`node`: CPU time of this process, in which the registrator runs; the engine, a fake one, is another process.
`fleet`: what 500 nodes of 20 instances ask of one real etcd at rest, by etcd's own counters. Of the nodes
some are whole registrators, with their watches; the others are sessions that are kept alive as often, for
500 mirrors of a whole fleet are more than one machine can hold.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path

import docker

from discovery import logs
from discovery.catalog import Attributes, Instance, Problem, Registration
from discovery.registrator import Registrator
from discovery.schema import instance_keys
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store
from discovery.stores.base import Session, Store
from tests.bench.figures import machine, print_table
from tests.lab.etcd import Etcd
from tests.lab.fake_engine import FakeEngine
from tests.lab.thread import in_thread
from tests.lab.wait import until

RULES = Rules("n1", "192.0.2.7")
INSTANCES = 20
TTL_SECONDS = 30.0
ROUNDS = 20


# ---- one node ---------------------------------------------------------------------------------------


def node(arguments: argparse.Namespace) -> list[list[str]]:
    with engine_process(arguments.containers) as url:
        return [*looks(url, arguments.containers), *event_to_store(url, arguments.containers)]


@contextlib.contextmanager
def engine_process(containers: int) -> Iterator[str]:
    """The URL of a fake engine with so many containers, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, containers))
    process.start()
    try:
        yield str(ours.recv())
    finally:
        ours.send("stop")
        process.join(30)


def _serve(pipe: Connection, containers: int) -> None:
    with FakeEngine() as engine:
        for number in range(containers):
            env = {"SERVICE_NAME": f"s{number % 200}", "SERVICE_TAGS": "a,b", "PATH": "/bin"}
            engine.run(f"c{number}", ports={80: 10_000 + number}, env=env)
        engine.age()
        pipe.send(engine.url)
        pipe.recv()


def looks(url: str, containers: int) -> list[list[str]]:
    clock = [0.0]
    with (
        closing(DockerSource(url, RULES, clock=lambda: clock[0])) as source,
        closing(docker.APIClient(base_url=url, version="auto")) as client,
    ):
        first = cpu(lambda: source.registrations())
        after_event = []
        for number in range(ROUNDS):
            (client.pause, client.unpause)[number % 2]("c1")
            until(lambda: source._is_stirred(), "stirred")
            after_event.append(cpu(lambda: source.registrations()))
        relists = []
        for _ in range(ROUNDS):
            clock[0] += 100
            relists.append(cpu(lambda: source.registrations()))
    return [
        row(f"first look, {containers:,} inspected", [first], ""),
        row("look after an event, one inspected", after_event, "≤ 200"),
        row("relist, none inspected", relists, "≤ 200"),
    ]


def event_to_store(url: str, containers: int) -> list[list[str]]:
    """All threads of the registrator, from the event until the store shows it, and the store's own share."""
    times = []
    with (
        closing(open_store("memory:")) as store,
        closing(docker.APIClient(base_url=url, version="auto")) as client,
    ):
        registrator = Registrator(store, DockerSource(url, RULES), ttl_seconds=30)
        with in_thread(registrator.run):
            until(lambda: registrator.status.registered == containers, "registered", 120)
            settle()
            for number in range(ROUNDS):
                paused = number % 2 == 0
                began = time.process_time()
                (client.pause if paused else client.unpause)("c1")
                until(lambda paused=paused: registrator.status.registered == containers - paused, "told")
                settle()
                times.append(time.process_time() - began)
            began = time.process_time()
            settle()
            idle = time.process_time() - began
    times = [each - idle for each in times]
    return [
        row("event → store, all threads, the client that pauses it too", times, "≤ 200"),
        ["idle, of one core", "", f"{idle / SETTLE_SECONDS * 100:.1f} %", "", ""],
    ]


SETTLE_SECONDS = 1.5


def settle() -> None:
    threading.Event().wait(SETTLE_SECONDS)


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this thread."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def row(what: str, seconds: list[float], wanted: str) -> list[str]:
    median, longest = statistics.median(seconds) * 1e3, max(seconds) * 1e3
    return [what, wanted, f"{median:.1f}", f"{longest:.1f}", str(len(seconds))]


# ---- many nodes -------------------------------------------------------------------------------------


class Fixed:
    """A source of a node's instances that never change."""

    name = "fixed"
    relist_seconds = 60.0
    problems: tuple[Problem, ...] = ()

    def __init__(self, number: int) -> None:
        self._registrations = registrations(number)
        self._closed = threading.Event()
        self._due = 0.0

    def registrations(self) -> tuple[Registration, ...]:
        self._due = time.monotonic() + self.relist_seconds
        return self._registrations

    def wait(self, timeout_seconds: float) -> bool:
        return self._closed.wait(timeout_seconds) or time.monotonic() >= self._due

    def close(self) -> None:
        self._closed.set()


def registrations(number: int) -> tuple[Registration, ...]:
    """Those of one node: a part of 1,000 services."""
    node, address = f"n{number}", f"10.{number // 250}.{number % 250}.1"
    return tuple(
        Registration(
            f"s{(number * INSTANCES + index) % 1000}",
            Instance(f"{node}:c{index}:80", address, 10_000 + index, Attributes("http", node=node)),
        )
        for index in range(INSTANCES)
    )


class Sessions:
    """Nodes that are sessions only: their keys are written, and kept alive every third of the TTL."""

    def __init__(self, store: Store, numbers: range) -> None:
        self._sessions: list[Session] = []
        for number in numbers:
            session = store.session(TTL_SECONDS)
            keys = [instance_keys(each.service, each.instance) for each in registrations(number)]
            session.put({key: value for each in keys for key, value in each.items()})
            self._sessions.append(session)

    def run(self, stop: threading.Event) -> None:
        pause_seconds = TTL_SECONDS / 3 / len(self._sessions)
        due = time.monotonic()
        while True:
            for session in self._sessions:
                session.keepalive()
                due += pause_seconds
                if stop.wait(max(0.0, due - time.monotonic())):
                    return


def fleet(arguments: argparse.Namespace) -> list[list[str]]:
    """The requests of one TTL and more at rest."""
    window_seconds = TTL_SECONDS
    with (
        tempfile.TemporaryDirectory() as directory,
        Etcd(Path(directory) / "etcd", enable_v2=False) as etcd,
        closing(open_store(etcd.url(3))) as store,
        ExitStack() as running,
    ):
        sessions = Sessions(store, range(arguments.full, arguments.nodes))
        running.enter_context(in_thread(sessions.run))
        whole = []
        for number in range(arguments.full):
            mine = running.enter_context(closing(open_store(etcd.url(3))))
            registrator = Registrator(mine, Fixed(number), ttl_seconds=TTL_SECONDS)
            running.enter_context(in_thread(registrator.run))
            whole.append(registrator)
        until(lambda: all(each.status.registered == INSTANCES for each in whole), "registered", 300)
        until(lambda: not others_than_keepalives(etcd), "at rest", 60)
        before, cpu_before = etcd.requests(), etcd_cpu(etcd)
        threading.Event().wait(window_seconds)
        after, cpu_after = etcd.requests(), etcd_cpu(etcd)
        keys = len(store.snapshot("/services/").entries)
    asked = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    keepalives = asked.pop("LeaseKeepAlive", 0)
    expected = arguments.nodes * window_seconds / (TTL_SECONDS / 3)
    what = f"{arguments.nodes} nodes of {INSTANCES}, {keys:,} keys, {window_seconds:g} s"
    others = ", ".join(f"{name} {count:g}" for name, count in sorted(asked.items())) or "none"
    return [
        [what, f"TTL {TTL_SECONDS:g} s", f"{arguments.full} of them whole registrators"],
        ["keepalives", f"{expected:g}", f"{keepalives:g}"],
        ["other requests, raft entries", "none", others],
        ["etcd's CPU, of one core", "", f"{(cpu_after - cpu_before) / window_seconds * 100:.1f} %"],
    ]


def others_than_keepalives(etcd: Etcd) -> dict[str, float]:
    """What else came within a few seconds, by method."""
    before = etcd.requests()
    threading.Event().wait(3)
    after = etcd.requests()
    changed = {name: after[name] - before.get(name, 0) for name in after if name != "LeaseKeepAlive"}
    return {name: count for name, count in changed.items() if count}


def etcd_cpu(etcd: Etcd) -> float:
    """CPU seconds so far."""
    return (
        sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{etcd.pid}/task").glob("*/schedstat"))
        / 1e9
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="node, fleet; default both")
    parser.add_argument("--containers", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--full", type=int, default=20)
    arguments = parser.parse_args()
    logs.configure("error", "text")
    parts = arguments.parts or ["node", "fleet"]
    print(machine())
    if "node" in parts:
        headings = ["CPU ms", "wanted", "median", "longest", "of"]
        print_table(f"one node, {arguments.containers:,} containers", headings, node(arguments))
    if "fleet" in parts:
        print_table("many nodes", ["at rest", "expected", "measured"], fleet(arguments))


if __name__ == "__main__":
    main()
