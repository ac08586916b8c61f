"""Containers come and go at random while registrators and engine are killed; at rest the stores are right.

    python -m tests.chaos.registrator --seeds 20 --containers 200 --seconds 60

has a registrator for each kind of store, side by side on one engine, or for those kinds alone that --store
names. It prints a line for each seed, and ends with 1 at the first for which a store is not what Docker says;
that seed's directory, with the registrators' logs, is kept.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
import structlog

from discovery.stores import open_store
from discovery.stores.base import Store
from tests.chaos.victims import ADDRESS, NODE, TTL_SECONDS, Process, Thread, Victim
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd
from tests.lab.wait import until

STORES = ("memory", "file", "etcd2", "etcd3")
REST_SECONDS = 120.0
AGAIN_SECONDS = 10.0
ENGINE_SECONDS = 300.0

# One dies at its stop signal, one ignores it: as process 1 it has no handler.
COMMANDS = (
    ["sh", "-c", "httpd -f -p 80 & trap 'exit 0' TERM; while :; do wait; done"],
    ["httpd", "-f", "-p", "80"],
)


@dataclass(frozen=True)
class Plan:
    """One run. ``workers`` do something to one of ``containers`` names at a time, for ``seconds``."""

    stores: tuple[str, ...]
    seed: int
    containers: int
    seconds: float
    workers: int = 4
    engine_kills: int = 1

    def engine_moments(self) -> list[float]:
        """When to kill the engine, in seconds from the beginning."""
        chance = random.Random(f"{self.seed} engine")
        return sorted(self.seconds * chance.uniform(0.2, 0.8) for _ in range(self.engine_kills))

    def victim_moments(self, store: str) -> Iterator[float]:
        """When to kill the registrator of this kind of store, in seconds from the beginning."""
        chance = random.Random(f"{self.seed} {store}")
        moment = 0.0
        while (moment := moment + self.seconds * chance.uniform(0.05, 0.2)) < self.seconds:
            yield moment


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


@dataclass
class Subject:
    """A kind of store, and the registrator that fills it."""

    kind: str
    store: Store
    victim: Victim
    kills: int = 0

    def kill(self) -> None:
        """Kill the registrator, and start another."""
        self.victim.kill()
        self.kills += 1
        self.victim.start()

    def difference(self, expected: Mapping[str, str]) -> list[str]:
        """What is wrong if these keys are expected and no others, and nothing is to be draining."""
        found = {key: entry.value for key, entry in self.store.snapshot("/services/").entries.items()}
        wrong = [f"missing {key}" for key in expected.keys() - found.keys()]
        wrong += [f"left over {key}" for key in found.keys() - expected.keys()]
        for key in expected.keys() & found.keys():
            if "/attributes/" in key:
                wrong += [f"draining {key}"] if json.loads(found[key]).get("draining") else []
            elif expected[key] != found[key]:
                wrong.append(f"{key} is {found[key]}, not {expected[key]}")
        return [f"{self.kind}: {each}" for each in sorted(wrong)]


@contextmanager
def subject(kind: str, engine: DockerEngine, directory: Path) -> Iterator[Subject]:
    """A store of this kind, with its server if it needs one; its registrator is not yet started."""
    directory.mkdir()
    with ExitStack() as stack:
        url = "memory:"
        if kind == "file":
            url = f"file://{directory}/store"
        elif kind != "memory":
            etcd = stack.enter_context(Etcd(directory / "etcd"))
            url = etcd.url(int(kind.removeprefix("etcd")))
        store = stack.enter_context(closing(open_store(url)))
        in_process = kind == "memory"
        victim: Victim = Thread(store, engine, directory) if in_process else Process(url, engine, directory)
        try:
            yield Subject(kind, store, victim)
        finally:
            with suppress(AssertionError):
                victim.kill()


def run(plan: Plan, engine: DockerEngine, directory: Path) -> str:
    """One run; what was done, in words. AssertionError says which stores are not right at rest."""
    with ExitStack() as stack:
        subjects = [stack.enter_context(subject(kind, engine, directory / kind)) for kind in plan.stores]
        changes = chaos(plan, engine, subjects)
        right = until_right(engine, subjects)
        # And stay so when everything of former lives has expired.
        settled = time.monotonic() + TTL_SECONDS + 1
        until(lambda: time.monotonic() > settled, "what was left expires")
        until_right(engine, subjects, AGAIN_SECONDS)
        count = sum("/hosts/" in key for key in wanted(engine))
        for each in subjects:
            each.victim.stop()
        left = [line for each in subjects for line in each.difference({})]
        assert not left, "\n".join(["something is left of a registrator that withdrew", *left])
    told = [f"{each.kind} {each.kills} kills, right after {right[each.kind]:.1f} s" for each in subjects]
    return "; ".join([f"{changes} changes, {count} run at rest", *told])


def chaos(plan: Plan, engine: DockerEngine, subjects: Sequence[Subject]) -> int:
    """Everything at random for as long as the plan says; how much was done to containers.

    Registrators and engine run afterwards.
    """
    stop = threading.Event()
    workers = [Containers(engine, plan, number) for number in range(plan.workers)]

    def kill_engine() -> None:
        engine.kill()
        # It cleans up after each container that it did not see die.
        engine.start(ENGINE_SECONDS)

    with ThreadPoolExecutor(len(workers) + len(subjects)) as pool:
        end = time.monotonic() + plan.seconds
        for each in subjects:
            each.victim.start()
        running = [pool.submit(worker.run, stop) for worker in workers]
        running += [pool.submit(at, plan.victim_moments(each.kind), each.kill, stop) for each in subjects]
        try:
            at(plan.engine_moments(), kill_engine, stop)
            stop.wait(max(0.0, end - time.monotonic()))
        finally:
            stop.set()
    for future in running:
        future.result()
    return sum(worker.done for worker in workers)


def at(moments: Iterable[float], do: Callable[[], None], stop: threading.Event) -> None:
    """Do it at each of these moments, in seconds from now, until told to stop."""
    began = time.monotonic()
    for moment in moments:
        if stop.wait(max(0.0, began + moment - time.monotonic())):
            return
        do()


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


def until_right(
    engine: DockerEngine, subjects: Sequence[Subject], seconds: float = REST_SECONDS
) -> dict[str, float]:
    """Wait until every store holds what is wanted; after how many seconds each was seen to, by its kind.

    That is at most so late: a busy engine takes seconds itself to say what is wanted.
    """
    began = time.monotonic()
    right: dict[str, float] = {}
    wrong: list[str] = []

    def all_right() -> bool:
        # Asked each time: one that was sent a signal may be about to end.
        expected = wanted(engine)
        wrong.clear()
        for each in subjects:
            difference = each.difference(expected)
            wrong.extend(difference)
            if difference:
                right.pop(each.kind, None)
            else:
                right.setdefault(each.kind, time.monotonic() - began)
        return not wrong

    until(all_right, "every store is right", seconds, detail=lambda: "\n".join(wrong))
    return right


def main() -> int:
    """Run the seeds that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", choices=STORES, action="append", help="may be repeated; default: all")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine-kills", type=int, default=1)
    arguments = parser.parse_args()
    stores = tuple(kind for kind in STORES if kind in (arguments.store or STORES))
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        live = seed % 2 == 1
        plan = Plan(
            stores, seed, arguments.containers, arguments.seconds, engine_kills=arguments.engine_kills
        )
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        began = time.monotonic()
        try:
            with (directory / "log").open("a") as log, DockerEngine(live_restore=live) as engine:
                # Of the registrator in this process.
                structlog.configure(logger_factory=structlog.WriteLoggerFactory(log))
                told = run(plan, engine, directory)
        except AssertionError as error:
            print(f"seed {seed} live-restore {live}: WRONG, see {directory}\n{error}", flush=True)
            return 1
        shutil.rmtree(directory)
        seconds = time.monotonic() - began
        print(f"seed {seed} live-restore {live}: {told}; {seconds:.0f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
