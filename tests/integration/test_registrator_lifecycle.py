"""Events, health, checks and stops of a real engine's containers, each ending in what is registered then."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from discovery.drains import Drains
from discovery.sources.docker_source import DockerSource
from discovery.sources.readiness import Readying
from discovery.stores import open_store
from discovery.stores.base import Store
from tests.integration.test_registrator import (
    HOSTS,
    NAMED,
    OBEDIENT,
    RULES,
    drained,
    draining,
    health,
    hosts,
    published,
    registering,
    run_in,
    until_hosts,
)
from tests.lab.dockerd import DockerEngine
from tests.lab.engine_proxy import EngineProxy
from tests.lab.wait import until

FAST = {"SERVICE_CHECK_INTERVAL": "200ms", "SERVICE_CHECK_TIMEOUT": "2s", "SERVICE_CHECK_FALL": "2"}
WEB = ["sh", "-c", "mkdir -p /www; exec httpd -f -p 80 -h /www"]


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(open_store("memory:")) as opened:
        yield opened


class Clock:
    """The real one, which a test may put forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@contextmanager
def looking(engine: DockerEngine, **arguments: object) -> Iterator[DockerSource]:
    with closing(DockerSource(engine.url, RULES, **arguments)) as source:  # type: ignore[arg-type]
        source.registrations()
        yield source


def ids(source: DockerSource) -> set[str]:
    return {each.instance.id for each in source.registrations()}


def until_ids(source: DockerSource, *expected: str) -> None:
    until(lambda: ids(source) == {*expected}, f"registered are {expected}", detail=lambda: str(ids(source)))


# ---- events -----------------------------------------------------------------------------------------


def test_what_is_only_created_is_not_registered_until_it_starts(engine: DockerEngine) -> None:
    with looking(engine) as source:
        web = engine.run("one", ports={80: None}, env=NAMED, start=False)
        engine.run("two", ports={80: None}, env=NAMED)
        until_ids(source, "n1:two:80")
        engine.client.start(web)
        until_ids(source, "n1:one:80", "n1:two:80")
        engine.client.remove_container("two", force=True)
        until_ids(source, "n1:one:80")


def test_a_restart_by_the_engine_itself_with_another_port(engine: DockerEngine, store: Store) -> None:
    policy = {"restart_policy": {"Name": "always"}}
    command = ["sh", "-c", "touch /tmp/go; while test -f /tmp/go; do sleep 0.1; done"]
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED, command=command, host=policy)
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        started = engine.client.inspect_container(web)["State"]["StartedAt"]
        run_in(engine, web, "rm", "/tmp/go")
        until(
            lambda: (
                (state := engine.client.inspect_container(web)["State"])["Running"]
                and state["StartedAt"] != started
            ),
            "the engine starts it again",
        )
        until_hosts(store, {"web n1:one:80": published(engine, web)})


def test_networks_and_updates_leave_what_is_published_as_it_is(engine: DockerEngine, store: Store) -> None:
    client = engine.client
    client.create_network("side")
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED)
        expected = {"web n1:one:80": published(engine, web)}
        until_hosts(store, expected)
        modified = store.snapshot("/services/").entries[f"{HOSTS}n1:one:80"].modified
        client.connect_container_to_network(web, "side")
        client.update_container(web, cpu_shares=512)
        client.disconnect_container_from_network(web, "side")
        marker = engine.run("two", ports={80: None}, env=NAMED)
        until_hosts(store, {**expected, "web n1:two:80": published(engine, marker)})
        assert store.snapshot("/services/").entries[f"{HOSTS}n1:one:80"].modified == modified


def test_disconnected_from_all_networks_it_is_published_nowhere(engine: DockerEngine, store: Store) -> None:
    client = engine.client
    client.create_network("only")
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED, network="only")
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        client.disconnect_container_from_network(web, "only")
        until_hosts(store, {})
        client.connect_container_to_network(web, "only")
        until_hosts(store, {"web n1:one:80": published(engine, web)})


def test_a_signal_inspects_nothing(engine: DockerEngine, tmp_path: Path) -> None:
    web = engine.run("one", ports={80: None}, env=NAMED)
    proxy = EngineProxy(tmp_path, Path(engine.url.removeprefix("unix://")))
    with proxy.running(), closing(DockerSource(proxy.url, RULES)) as source:
        until(lambda: len(source.registrations()) == 1, "registered")
        until(lambda: not source.wait(0.5) or bool(_look(source)), "what was before is replayed")
        proxy.passed.clear()
        engine.client.kill(web, "HUP")
        engine.client.kill(web, "TERM")
        until(lambda: source.wait(1) and len(drained(source)) == 1, "it is drained")
        assert not [line for line in proxy.passed if web in line]


# ---- health -----------------------------------------------------------------------------------------


def test_one_that_starts_is_registered_for_its_grace(engine: DockerEngine) -> None:
    never = {"test": ["CMD", "true"], "interval": 3600 * 1_000_000_000}
    with looking(engine) as strict, looking(engine, readying=Readying(grace_seconds=5)) as graceful:
        web = engine.run("one", ports={80: None}, env=NAMED, healthcheck=never)
        until_ids(graceful, "n1:one:80")
        assert ids(strict) == set()
        until(lambda: graceful.wait(1) and not ids(graceful), "the grace is over, and it is not healthy")
        assert health(engine, web) == "starting"


def test_the_grace_is_of_no_use_to_one_that_is_unhealthy(engine: DockerEngine) -> None:
    bad = {"test": ["CMD", "test", "-f", "/tmp/good"], "interval": 200_000_000, "retries": 1}
    with looking(engine, readying=Readying(grace_seconds=3600)) as source:
        web = engine.run("one", ports={80: None}, env=NAMED, healthcheck=bad)
        until(lambda: health(engine, web) == "unhealthy", "it is unhealthy")
        until_ids(source)
        run_in(engine, web, "touch", "/tmp/good")
        until_ids(source, "n1:one:80")


def test_an_http_check_registers_and_withdraws(engine: DockerEngine, store: Store) -> None:
    env = {**NAMED, **FAST, "SERVICE_CHECK_HTTP": "/up"}
    with registering(engine, store) as registrator:
        web = engine.run("one", ports={80: None}, env=env, command=WEB)
        until(
            lambda: any("GET /up says 404" in each.reason for each in registrator.status.problems),
            "it is checked",
        )
        assert hosts(store) == {}
        run_in(engine, web, "touch", "/www/up")
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        # One that is started now does not have to find it out before it registers it.
        with looking(engine) as other:
            assert ids(other) == {"n1:one:80"}
        run_in(engine, web, "rm", "/www/up")
        until_hosts(store, {})


def test_a_tcp_check_is_not_deceived_by_docker_proxy(engine: DockerEngine, store: Store) -> None:
    env = {**NAMED, **FAST, "SERVICE_CHECK_TCP": "true"}
    command = ["sh", "-c", "while :; do test -f /tmp/go && httpd -f -p 80; sleep 0.1; done"]
    with registering(engine, store) as registrator:
        web = engine.run("one", ports={80: None}, env=env, command=command)
        until(lambda: bool(registrator.status.problems), "nobody listens, though docker-proxy accepts")
        assert hosts(store) == {}
        run_in(engine, web, "touch", "/tmp/go")
        until_hosts(store, {"web n1:one:80": published(engine, web)})


def test_a_command_is_run_where_that_is_allowed(engine: DockerEngine) -> None:
    env = {**NAMED, **FAST, "SERVICE_CHECK_CMD": "test -f /tmp/good"}
    web = engine.run("one", ports={80: None}, env=env)
    allowed = DockerSource(engine.url, replace(RULES, check_commands=True))
    with closing(allowed):
        until(lambda: any("status 1" in each.reason for each in allowed.problems + _look(allowed)), "bad")
        assert ids(allowed) == set()
        run_in(engine, web, "touch", "/tmp/good")
        until_ids(allowed, "n1:one:80")
        run_in(engine, web, "rm", "/tmp/good")
        until_ids(allowed)


def _look(source: DockerSource) -> tuple[()]:
    source.registrations()
    return ()


# ---- stops ------------------------------------------------------------------------------------------


def test_the_images_own_stop_signal_drains(engine: DockerEngine, store: Store) -> None:
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED, stop_signal="SIGHUP")
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        engine.client.kill(web, "TERM")
        engine.run("two", ports={80: None}, env=NAMED)
        until(lambda: len(hosts(store)) == 2, "the signal was seen")
        assert not draining(store)
        engine.client.kill(web, "HUP")
        until(lambda: draining(store) == {"n1:one:80"}, "it is drained")


def test_a_paused_container_that_is_stopped_and_a_name_that_changes_meanwhile(
    engine: DockerEngine, store: Store
) -> None:
    with registering(engine, store):
        web = engine.run("one", ports={80: None}, env=NAMED, stop_timeout=60)
        until_hosts(store, {"web n1:one:80": published(engine, web)})
        engine.client.kill(web, "TERM")
        until(lambda: draining(store) == {"n1:one:80"}, "it is drained")
        engine.client.rename(web, "two")
        until(lambda: draining(store) == {"n1:two:80"}, "under its new name as well")
        assert hosts(store).keys() == {"web n1:two:80"}
        engine.client.pause(web)
        until_hosts(store, {})
        engine.client.unpause(web)
        until(lambda: draining(store) == {"n1:two:80"}, "it is still being stopped")
        engine.client.kill(web, "KILL")
        until_hosts(store, {})


def test_a_stop_that_takes_longer_than_the_container_asks_for_can_be_set(engine: DockerEngine) -> None:
    short, long = Clock(), Clock()
    web = engine.run("one", ports={80: None}, env=NAMED, stop_timeout=1)
    with (
        looking(engine, clock=short) as usual,
        looking(engine, clock=long, readying=Readying(stop_seconds=60)) as patient,
    ):
        engine.client.kill(web, "TERM")
        until(lambda: len(drained(usual)) == len(drained(patient)) == 1, "both drain it")
        short.ahead = long.ahead = 7.0
        until(lambda: ids(usual) == {"n1:one:80"} and not drained(usual), "it outlived the signal")
        assert len(drained(patient)) == 1
        long.ahead = 66.0
        until(lambda: ids(patient) == {"n1:one:80"} and not drained(patient), "and at last for that one too")


def test_drained_on_request_until_that_is_over(engine: DockerEngine, tmp_path: Path) -> None:
    web = engine.run("one", ports={80: None}, env=NAMED, command=OBEDIENT)
    drains = Drains(tmp_path / "drains")
    with looking(engine, drains=drains) as source:
        assert not drained(source)
        with drains.requested(web, 60):
            until(lambda: source.wait(1) and len(drained(source)) == 1, "it is drained")
            # One that begins to look now knows of it too.
            with looking(engine, drains=Drains(tmp_path / "drains")) as other:
                assert len(drained(other)) == 1
        until(lambda: source.wait(1) and not drained(source), "the request is withdrawn")
        assert ids(source) == {"n1:one:80"}


def test_a_request_whose_maker_was_killed_ends_by_itself(engine: DockerEngine, tmp_path: Path) -> None:
    web = engine.run("one", ports={80: None}, env=NAMED, command=OBEDIENT)
    drains = Drains(tmp_path / "drains")
    kept = drains.requested(web, 3)
    kept.__enter__()
    (tmp_path / "drains" / "no-request").write_text("{")
    with looking(engine, drains=Drains(tmp_path / "drains")) as source:
        assert len(drained(source)) == 1
        until(lambda: source.wait(1) and not drained(source), "its time is over")
