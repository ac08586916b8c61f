"""Containers come and go at random while registrator and engine are killed; at rest the store is right.

    python -m tests.chaos.registrator --store etcd3 --seeds 20 --containers 200 --seconds 60

prints a line for each seed, and ends with 1 at the first for which the store is not what Docker says.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import docker
import requests

from discovery.journal import Journal
from discovery.registrator import Registrator
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store
from discovery.stores.base import Store
from tests.lab.cuttable import CuttableStore
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd
from tests.lab.wait import until

STORES = ("memory", "file", "etcd2", "etcd3")
TTL_SECONDS = 4.0
REST_SECONDS = 120.0
ENGINE_SECONDS = 300.0
NODE, ADDRESS = "n1", "192.0.2.7"

# One dies at its stop signal, one ignores it: as process 1 it has no handler.
COMMANDS = (
    ["sh", "-c", "httpd -f -p 80 & trap 'exit 0' TERM; while :; do wait; done"],
    ["httpd", "-f", "-p", "80"],
)


@dataclass(frozen=True)
class Plan:
    """One run. ``workers`` do something to one of ``containers`` names at a time, for ``seconds``."""

    store: str
    seed: int
    containers: int
    seconds: float
    workers: int = 4
    engine_kills: int = 1


# ---- registrators that can be killed ----------------------------------------------------------------


class Victim(Protocol):
    """A registrator."""

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def stop(self) -> None: ...


class Process:
    """A registrator as a process; kill is kill -9."""

    def __init__(self, store_url: str, engine: DockerEngine, directory: Path) -> None:
        words = [store_url, engine.url, str(TTL_SECONDS), str(directory)]
        self._arguments = [sys.executable, "-m", "tests.lab.run_registrator", *words]
        self._log = directory / "registrator.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._arguments, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0, self._log.read_text()[-3000:]
        self._process = None


class Thread:
    """A registrator in this process, for a store that is in this process; killed, it is cut off from it."""

    def __init__(self, store: Store, engine: DockerEngine, directory: Path) -> None:
        self._whole = store
        self._engine = engine
        self._directory = directory
        self._end: Callable[[], None] | None = None
        self._cut: CuttableStore | None = None

    def start(self) -> None:
        self._cut = store = CuttableStore(self._whole)
        source = DockerSource(self._engine.url, Rules(NODE, ADDRESS))
        journal = Journal(self._directory / "journal", store.url)
        registrator = Registrator(store, source, ttl_seconds=TTL_SECONDS, journal=journal)
        stop = threading.Event()
        thread = threading.Thread(target=registrator.run, args=(stop,))
        thread.start()

        def end() -> None:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

        self._end = end

    def kill(self) -> None:
        if self._cut is not None:
            self._cut.cut = True
            self.stop()

    def stop(self) -> None:
        if self._end is not None:
            self._end()
        self._end = self._cut = None


# ---- what happens to containers ---------------------------------------------------------------------


class Containers:
    """Does one thing after the other to containers of random names, until told to end."""

    def __init__(self, engine: DockerEngine, plan: Plan, number: int) -> None:
        self._url = engine.url
        self._random = random.Random(f"{plan.seed} {number}")
        # Each worker has its own, so that what it does is in order.
        self._names = [f"c{index}" for index in range(number, plan.containers, plan.workers)]
        self.done = 0

    def run(self, stop: threading.Event) -> None:
        # One version for all its life: a new engine is the same one.
        client = docker.APIClient(base_url=self._url, version="1.40", timeout=60)
        with closing(client):
            while not stop.is_set():
                try:
                    self._once(client, self._random.choice(self._names))
                    self.done += 1
                except (docker.errors.DockerException, requests.RequestException, OSError):
                    # It is not in the state for this, or the engine is down.
                    stop.wait(0.05)

    def _once(self, client: Any, name: str) -> None:
        found = client.containers(all=True, filters={"name": f"^/{name}$"})
        if not found:
            self._create(client, name)
            return
        state = found[0]["State"]
        if state == "paused":
            client.unpause(name)
        elif state != "running":
            client.start(name) if self._random.random() < 0.8 else client.remove_container(name)
        else:
            self._random.choice(self._when_running)(client, name)

    @property
    def _when_running(self) -> list[Callable[[Any, str], object]]:
        return [
            lambda client, name: client.stop(name, timeout=1),
            lambda client, name: client.stop(name, timeout=0),
            lambda client, name: client.kill(name, "KILL"),
            lambda client, name: client.kill(name, "TERM"),
            lambda client, name: client.kill(name, "HUP"),
            lambda client, name: client.restart(name, timeout=0),
            lambda client, name: client.pause(name),
            lambda client, name: client.remove_container(name, force=True),
            lambda client, name: client.update_container(name, cpu_shares=512),
        ]

    def _create(self, client: Any, name: str) -> None:
        environment = {"SERVICE_NAME": f"s{self._random.randrange(20)}"}
        if self._random.random() < 0.1:
            environment["SERVICE_CHECK_TCP"] = "true"
            environment["SERVICE_CHECK_INTERVAL"] = "1s"
        client.create_container(
            "busybox:local",
            self._random.choice(COMMANDS),
            name=name,
            ports=[80],
            environment=environment,
            stop_timeout=1,
            host_config=client.create_host_config(port_bindings={80: None}),
        )
        client.start(name)


# ---- one run ----------------------------------------------------------------------------------------


@contextmanager
def opened(kind: str, directory: Path) -> Iterator[Store]:
    """A store of this kind, with its server if it needs one."""
    with ExitStack() as stack:
        url = "memory:"
        if kind == "file":
            url = f"file://{directory}/store"
        elif kind != "memory":
            etcd = stack.enter_context(Etcd(directory / "etcd"))
            url = etcd.url(int(kind.removeprefix("etcd")))
        yield stack.enter_context(closing(open_store(url)))


def run(plan: Plan, engine: DockerEngine, store: Store, directory: Path) -> str:
    """One run; what was done, in words. AssertionError when the store is not right at rest."""
    chance = random.Random(plan.seed)
    in_process = store.url.startswith("memory:")
    victim: Victim = Thread(store, engine, directory) if in_process else Process(store.url, engine, directory)
    stop = threading.Event()
    workers = [Containers(engine, plan, number) for number in range(plan.workers)]
    threads = [threading.Thread(target=worker.run, args=(stop,)) for worker in workers]
    victim.start()
    for thread in threads:
        thread.start()
    try:
        kills = _trouble(plan, chance, engine, victim)
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    try:
        began = time.monotonic()
        until_right(engine, store)
        rest_seconds = time.monotonic() - began
        # And stays so when everything of former lives has expired.
        settled = time.monotonic() + TTL_SECONDS + 1
        until(lambda: time.monotonic() > settled, "what was left expires")
        until_right(engine, store, seconds=5)
        count = sum("/hosts/" in key for key in wanted(engine))
        victim.stop()
        assert not store.snapshot("/services/").entries, "something is left of a registrator that withdrew"
    finally:
        with suppress(AssertionError):
            victim.kill()
    done = sum(worker.done for worker in workers)
    return (
        f"{done} changes, {kills} registrators killed, {count} run at rest, right after {rest_seconds:.1f} s"
    )


def _trouble(plan: Plan, chance: random.Random, engine: DockerEngine, victim: Victim) -> int:
    """Kill and start registrator and engine at random times, for as long as the plan says; both run then."""
    began = time.monotonic()
    kills = 0
    at = [(chance.uniform(0.2, 0.8) * plan.seconds, True) for _ in range(plan.engine_kills)]
    moment = 0.0
    while (moment := moment + plan.seconds * chance.uniform(0.05, 0.2)) < plan.seconds:
        at.append((moment, False))
    for due, is_engine in sorted(at):
        until(lambda due=due: time.monotonic() - began >= due, "its time has come", plan.seconds + 60)  # type: ignore[misc]
        if is_engine:
            engine.kill()
            # It cleans up after each container that it did not see die.
            engine.start(ENGINE_SECONDS)
        else:
            victim.kill()
            kills += 1
            victim.start()
    until(lambda: time.monotonic() - began >= plan.seconds, "the end", plan.seconds + 60)
    return kills


def wanted(engine: DockerEngine) -> dict[str, str]:
    """Every key that is justified by what the engine says, with its value; attributes as they are."""
    keys: dict[str, str] = {}
    for item in engine.client.containers():
        document = engine.client.inspect_container(item["Id"])
        if document["State"]["Status"] != "running":
            continue
        name = document["Name"].removeprefix("/")
        said = dict(word.partition("=")[::2] for word in document["Config"]["Env"])
        bindings = document["NetworkSettings"]["Ports"].get("80/tcp") or []
        ports = [each["HostPort"] for each in bindings if ":" not in each["HostIp"]]
        if not ports:
            # One that an engine was killed under may run on without what it published.
            continue
        service = f"/services/{said['SERVICE_NAME']}/"
        keys[f"{service}scheme"] = "http"
        keys[f"{service}hosts/{NODE}:{name}:80"] = f"{ADDRESS}:{ports[0]}"
        keys[f"{service}attributes/{NODE}:{name}:80"] = ""
    return keys


def until_right(engine: DockerEngine, store: Store, seconds: float = REST_SECONDS) -> None:
    """Wait until the store holds what is wanted, no more and no less, and nothing is draining."""
    expected = wanted(engine)

    def difference() -> list[str]:
        found = {key: entry.value for key, entry in store.snapshot("/services/").entries.items()}
        wrong = [f"missing {key}" for key in expected.keys() - found.keys()]
        wrong += [f"left over {key}" for key in found.keys() - expected.keys()]
        for key in expected.keys() & found.keys():
            if "/attributes/" in key:
                wrong += [f"draining {key}"] if json.loads(found[key]).get("draining") else []
            elif expected[key] != found[key]:
                wrong.append(f"{key} is {found[key]}, not {expected[key]}")
        return sorted(wrong)

    until(lambda: not difference(), "the store is right", seconds, detail=lambda: "\n".join(difference()))


def main() -> int:
    """Run the seeds that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=STORES, default="etcd3")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine-kills", type=int, default=1)
    arguments = parser.parse_args()
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        plan = Plan(
            arguments.store,
            seed,
            arguments.containers,
            arguments.seconds,
            engine_kills=arguments.engine_kills,
        )
        live = seed % 2 == 1
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{plan.store}-{seed}-"))
        began = time.monotonic()
        try:
            with opened(plan.store, directory) as store, DockerEngine(live_restore=live) as engine:
                told = run(plan, engine, store, directory)
        except AssertionError as error:
            print(
                f"{plan.store} seed {seed} live-restore {live}: WRONG, see {directory}\n{error}", flush=True
            )
            return 1
        seconds = time.monotonic() - began
        print(f"{plan.store} seed {seed} live-restore {live}: {told}; {seconds:.0f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
