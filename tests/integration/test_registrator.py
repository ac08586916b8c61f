"""Containers of a real engine → keys: every event of a container's life, and of the engine's."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from discovery.catalog import Registration
from discovery.errors import SourceError
from discovery.registrator import Registrator
from discovery.sources.docker import Rules
from discovery.sources.docker_engine import ping
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store
from discovery.stores.base import Store
from tests.lab.dockerd import DockerEngine
from tests.lab.thread import in_thread
from tests.lab.wait import until

RULES = Rules(node="n1", address="192.0.2.7")
HOSTS = "/services/web/hosts/"
NAMED = {"SERVICE_NAME": "web"}

# As PID 1 a process ignores a signal it has no handler for.
OBEDIENT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(open_store("memory:")) as opened:
        yield opened


@contextmanager
def registering(engine: DockerEngine, store: Store, rules: Rules = RULES) -> Iterator[Registrator]:
    source = DockerSource(engine.url, rules, timeout_seconds=5)
    registrator = Registrator(store, source, ttl_seconds=10)
    with in_thread(registrator.run):
        yield registrator


def hosts(store: Store) -> dict[str, str]:
    """Addresses of all instances, by service and id."""
    entries = store.snapshot("/services/").entries
    return {
        key.removeprefix("/services/").replace("/hosts/", " "): entry.value
        for key, entry in entries.items()
        if "/hosts/" in key
    }


def until_hosts(store: Store, expected: dict[str, str], seconds: float = 30) -> None:
    until(
        lambda: hosts(store) == expected, f"hosts are {expected}", seconds, detail=lambda: str(hosts(store))
    )


def published(engine: DockerEngine, container: str, port: int = 80) -> str:
    """The address by which a published port is to be registered at this moment."""
    bindings = engine.client.inspect_container(container)["NetworkSettings"]["Ports"][f"{port}/tcp"]
    (v4,) = (each["HostPort"] for each in bindings if each["HostIp"] == "0.0.0.0")
    return f"192.0.2.7:{v4}"


# ---- a container's life -----------------------------------------------------------------------------


def test_a_containers_life(engine: DockerEngine, store: Store) -> None:
    client = engine.client
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED, command=OBEDIENT)
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        client.pause(web)
        until_hosts(store, {})
        client.unpause(web)
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        client.rename(web, "two")
        until_hosts(store, {"web n1:two:80": published(engine, web)})
        client.restart(web)  # may have got another port
        until_hosts(store, {"web n1:two:80": published(engine, web)})
        client.stop(web)
        until_hosts(store, {})
        client.start(web)
        until_hosts(store, {"web n1:two:80": published(engine, web)})
        client.kill(web, "KILL")
        until_hosts(store, {})
        client.start(web)
        until_hosts(store, {"web n1:two:80": published(engine, web)})
        client.remove_container(web, force=True)
        until_hosts(store, {})
        assert not store.snapshot("/services/").entries


def test_containers_that_ran_before_and_what_is_withdrawn_at_the_end(
    engine: DockerEngine, store: Store
) -> None:
    engine.run("old", ports={80: 18080}, env=NAMED)
    engine.run("two-ports", ports={80: 18081, 81: 18082}, labels={"SERVICE_81_NAME": "named"})
    engine.run("ignored", ports={80: 18083}, env={"SERVICE_IGNORE": "yes"})
    engine.run("unpublished")
    with registering(engine, store) as registrator:
        until_hosts(
            store,
            {
                "web n1:old:80": "192.0.2.7:18080",
                "busybox-80 n1:two-ports:80": "192.0.2.7:18081",
                "named n1:two-ports:81": "192.0.2.7:18082",
            },
        )
        assert not registrator.status.problems
    assert not store.snapshot("/services/").entries


def test_drained_at_the_stop_signal_and_gone_at_death(engine: DockerEngine, store: Store) -> None:
    with registering(engine, store):
        # It ignores SIGTERM, so it runs until the engine's time-out.
        web = engine.run("one", ports={80: None}, env=NAMED)
        address = published(engine, web)
        until_hosts(store, {"web n1:one:80": address})
        assert not draining(store)
        stopping = threading.Thread(target=engine.client.stop, args=(web, 20))
        stopping.start()
        until(lambda: draining(store) == {"n1:one:80"}, "it is drained")
        # It is there until it is dead, so that what is under way can end.
        assert hosts(store) == {"web n1:one:80": address}
        assert engine.client.inspect_container(web)["State"]["Running"]
        engine.client.kill(web, "KILL")
        stopping.join(30)
        until_hosts(store, {})


def test_only_the_stop_signal_drains_and_not_for_ever(engine: DockerEngine, store: Store) -> None:
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED, stop_timeout=0)
        marker = engine.run("marker", ports={80: None}, env={"SERVICE_NAME": "marker"})
        both = {
            "web n1:one:80": published(engine, web),
            "marker n1:marker:80": published(engine, marker),
        }
        until_hosts(store, both)
        engine.client.kill(web, "HUP")
        engine.client.kill(web, "USR1")
        engine.client.pause(marker)
        # Events arrive in order: by now the signals were seen, and nothing came of them.
        until_hosts(store, {"web n1:one:80": both["web n1:one:80"]})
        assert not draining(store)
        engine.client.kill(web, "TERM")
        until(lambda: draining(store) == {"n1:one:80"}, "it is drained")
        until(lambda: not draining(store), "it outlived the signal, and serves")
        assert hosts(store) == {"web n1:one:80": both["web n1:one:80"]}


def test_what_outlived_its_stop_signal_but_does_not_serve_stays_away(
    engine: DockerEngine, store: Store
) -> None:
    """`docker stop -t 60` of one that asks for less, and closes its port at once."""
    slow = [
        "sh",
        "-c",
        "httpd -f -p 81 & server=$!; trap 'kill $server' TERM; while :; do sleep 0.1; done",
    ]
    with registering(engine, store) as registrator:
        web = engine.run("one", ports={81: None}, env=NAMED, command=slow, stop_timeout=0)
        until_hosts(store, {"web n1:one:81": published(engine, web, 81)})
        engine.client.kill(web, "TERM")
        until(lambda: draining(store) == {"n1:one:81"}, "it is drained")
        until_hosts(store, {})
        assert any("outlived" in problem.reason for problem in registrator.status.problems)


def test_a_restart_seen_all_at_once(engine: DockerEngine) -> None:
    web = engine.run("one", ports={80: None}, env=NAMED, command=OBEDIENT)
    source = DockerSource(engine.url, RULES)
    try:
        assert len(source.registrations()) == 1
        engine.client.restart(web)
        marker = engine.run("two", ports={80: None}, env=NAMED)
        # The stop signal of its former life says nothing about this one.
        until(lambda: source.wait(1) and len(source.registrations()) == 2, "both are registered", 10)
        # Nor does it to one that begins to look now, and is told what was before.
        other = DockerSource(engine.url, RULES)
        assert len(other.registrations()) == 2
        other.close()
        # One that is being stopped is, even to that one.
        engine.client.kill(marker, "TERM")
        late = DockerSource(engine.url, RULES)
        until(lambda: len(drained(late)) == 1, "the signal is replayed", 10)
        late.close()
    finally:
        source.close()


def test_registered_only_while_healthy(engine: DockerEngine, store: Store) -> None:
    interval = 200_000_000
    with registering(engine, store):
        check = {"test": ["CMD", "test", "-f", "/tmp/good"], "interval": interval, "retries": 1}
        web = engine.run("one", ports={80: None}, env=NAMED, healthcheck=check)
        until(lambda: health(engine, web) == "unhealthy", "it is unhealthy")
        assert hosts(store) == {}
        run_in(engine, web, "touch", "/tmp/good")
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        run_in(engine, web, "rm", "/tmp/good")
        until_hosts(store, {})


def test_networks_come_and_go(engine: DockerEngine, store: Store) -> None:
    client = engine.client
    for name in ("front", "back"):
        client.create_network(name)
    rules = Rules("n1", "192.0.2.7", internal=True)
    with registering(engine, store, rules):
        web = engine.run("one", ports={80: None}, env=NAMED, network="front")

        def address(network: str) -> str:
            networks = client.inspect_container(web)["NetworkSettings"]["Networks"]
            return f"{networks[network]['IPAddress']}:80"

        until_hosts(store, {"web n1:one:80": address("front")})
        client.connect_container_to_network(web, "back")
        until_hosts(store, {"web n1:one:80": address("back")})
        client.disconnect_container_from_network(web, "back")
        until_hosts(store, {"web n1:one:80": address("front")})


def test_a_bad_container_harms_no_other(engine: DockerEngine, store: Store) -> None:
    with registering(engine, store) as registrator:
        engine.run("bad", ports={80: None}, env={**NAMED, "SERVICE_SCHEME": "gopher", "PASSWORD": "hunter2"})
        engine.run("local", ports={80: ("127.0.0.1", None)}, env=NAMED)
        good = engine.run("good", ports={80: None}, env=NAMED)
        until_hosts(store, {"web n1:good:80": published(engine, good)})
        problems = {problem.subject: problem.reason for problem in registrator.status.problems}
        assert sorted(problems) == ["container bad port 80", "container local port 80"]
        assert "gopher" in problems["container bad port 80"]
        assert "hunter2" not in str(store.snapshot("/").entries)


# ---- the engine's life ------------------------------------------------------------------------------


def test_an_engine_killed_and_started_again_with_live_restore(store: Store) -> None:
    with (
        DockerEngine(live_restore=True) as engine,
        registering(engine, store) as registrator,
    ):
        web = engine.run("one", ports={80: 18090}, env=NAMED)
        until_hosts(store, {"web n1:one:80": "192.0.2.7:18090"})
        created = store.snapshot("/services/").entries[f"{HOSTS}n1:one:80"].created
        engine.kill()
        until(lambda: registrator.status.error is not None, "the outage is noticed")
        engine.start()
        until(lambda: registrator.status.error is None, "the source is back")
        second = engine.run("two", ports={80: None}, env=NAMED)
        until_hosts(store, {"web n1:one:80": "192.0.2.7:18090", "web n1:two:80": published(engine, second)})
        # It was there all the while.
        assert store.snapshot("/services/").entries[f"{HOSTS}n1:one:80"].created == created
        engine.client.remove_container(web, force=True)
        until_hosts(store, {"web n1:two:80": published(engine, second)})


def test_what_died_with_the_engine_goes_when_it_is_back(store: Store) -> None:
    with DockerEngine() as engine, registering(engine, store) as registrator:
        engine.run("one", ports={80: 18090}, env=NAMED, command=OBEDIENT)
        until_hosts(store, {"web n1:one:80": "192.0.2.7:18090"})
        engine.kill()
        until(lambda: registrator.status.error is not None, "the outage is noticed")
        assert hosts(store) == {"web n1:one:80": "192.0.2.7:18090"}
        engine.start()
        until_hosts(store, {}, seconds=60)


def test_a_frozen_engine_is_an_error_not_an_empty_one(store: Store) -> None:
    with DockerEngine() as engine:
        engine.run("one", ports={80: None}, env=NAMED)
        source = DockerSource(engine.url, RULES, relist_seconds=1, timeout_seconds=1)
        try:
            assert len(source.registrations()) == 1
            engine.freeze()
            try:
                until(lambda: source.wait(1), "it is time to look again")
                with pytest.raises(SourceError, match=r"docker\.url"):
                    source.registrations()
            finally:
                engine.thaw()
            assert len(source.registrations()) == 1
        finally:
            source.close()


def test_no_engine() -> None:
    with pytest.raises(
        SourceError, match=r"docker\.url: no Docker engine answers at unix:///nowhere.*--docker"
    ):
        ping("unix:///nowhere/docker.sock")


def test_close_ends_a_wait(engine: DockerEngine) -> None:
    source = DockerSource(engine.url, RULES)
    source.registrations()
    waiting = threading.Thread(target=source.wait, args=(300,))
    waiting.start()
    source.close()
    waiting.join(30)
    assert not waiting.is_alive()


# ---- the registrator's own life ---------------------------------------------------------------------


@pytest.fixture
def process(engine: DockerEngine, tmp_path: Path) -> Iterator[tuple[Store, "subprocess.Popen[bytes]"]]:
    url = f"file://{tmp_path}/store"
    engine.run("one", ports={80: 18091}, env=NAMED)
    arguments = [sys.executable, "-m", "tests.lab.run_registrator", url, engine.url, "3"]
    with closing(open_store(url)) as store, subprocess.Popen(arguments) as started:
        try:
            until_hosts(store, {"web n1:one:80": "192.0.2.7:18091"})
            yield store, started
        finally:
            started.kill()


def test_sigterm_withdraws(process: tuple[Store, "subprocess.Popen[bytes]"]) -> None:
    store, registrator = process
    registrator.send_signal(signal.SIGTERM)
    assert registrator.wait(30) == 0
    assert not store.snapshot("/services/").entries


def test_killed_its_keys_expire(process: tuple[Store, "subprocess.Popen[bytes]"]) -> None:
    store, registrator = process
    registrator.kill()
    registrator.wait(30)
    assert hosts(store) == {"web n1:one:80": "192.0.2.7:18091"}
    until_hosts(store, {})


def draining(store: Store) -> set[str]:
    """The ids of instances that are marked as draining."""
    entries = store.snapshot("/services/").entries
    return {
        key.rpartition("/")[2]
        for key, entry in entries.items()
        if "/attributes/" in key and json.loads(entry.value).get("draining")
    }


def drained(source: DockerSource) -> list[Registration]:
    return [each for each in source.registrations() if each.instance.attributes.draining]


def health(engine: DockerEngine, container: str) -> str:
    return str(engine.client.inspect_container(container)["State"]["Health"]["Status"])


def run_in(engine: DockerEngine, container: str, *command: str) -> None:
    """Run a command inside a container; it must succeed."""
    made = engine.client.exec_create(container, list(command))["Id"]
    engine.client.exec_start(made)
    assert engine.client.exec_inspect(made)["ExitCode"] == 0
