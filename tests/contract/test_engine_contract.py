"""What we rely on of an engine: the real one, and the fake that stands in for a thousand containers."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from discovery.sources.container import read_container
from discovery.sources.docker import Rules
from discovery.sources.docker_engine import Engine, Event, EventStream
from discovery.sources.docker_source import DockerSource
from tests.lab.dockerd import DockerEngine
from tests.lab.fake_engine import FakeEngine
from tests.lab.wait import until


@pytest.fixture(scope="module")
def real() -> Iterator[DockerEngine]:
    with DockerEngine() as started:
        yield started


@pytest.fixture(params=["real", "fake"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        with FakeEngine() as started:
            yield started
        return
    found = request.getfixturevalue("real")
    yield found
    found.remove_all()


@pytest.fixture
def connection(engine: Any) -> Iterator[Engine]:
    with closing(Engine(engine.url, 10)) as opened:
        yield opened


# As PID 1 a process ignores a signal it has no handler for.
OBEDIENT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]


def test_what_is_listed_and_inspected(engine: Any, connection: Engine) -> None:
    env = {"SERVICE_NAME": "shop"}
    id_ = engine.run(
        "web", ports={80: 8000, 81: None}, env=env, labels={"SERVICE_TAGS": "a"}, command=OBEDIENT
    )
    engine.run("made", ports={}, start=False)
    (listed,) = connection.list()
    assert (listed["Id"], listed["Names"], listed["State"]) == (id_, ["/web"], "running")
    assert {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8000, "Type": "tcp"} in listed["Ports"]
    for name in (id_, "web", id_[:60]):
        document = connection.inspect(name)
        assert document is not None
        found = read_container(document)
        assert (found.id, found.name, found.image, found.status) == (id_, "web", "busybox:local", "running")
        assert {port.number for port in found.published} == {80, 81}
        assert found.words.general == {"name": "shop", "tags": "a"}
        assert found.networks["bridge"][0].startswith("172.")
        assert found.started_us > found.created_us > 1e15
    assert connection.inspect("nobody") is None
    assert {"bridge", "host", "none"} <= {each["Name"] for each in connection.networks()}
    engine.client.pause("web")
    (listed,) = connection.list()
    assert (listed["State"], "(Paused)" in listed["Status"]) == ("paused", True)
    engine.client.unpause("web")
    engine.client.kill("web")
    until(lambda: connection.list() == [], "it has ended")
    ended = connection.inspect("web")
    assert ended is not None
    assert read_container(ended).status == "exited"
    assert read_container(ended).published == {}


def test_what_happens_is_told_in_order_and_again(engine: Any, connection: Engine) -> None:
    began = time.time()
    stream = connection.events(began, 60, lambda: None)
    id_ = engine.run("web", ports={80: 8000}, command=OBEDIENT)
    told: list[Event] = []

    def told_of(stream: EventStream, told: list[Event], count: int) -> bool:
        told += [event for event in stream.take() if event.container_id == id_]
        return len(told) >= count

    steps: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: None, ["connect", "start"]),
        (lambda: engine.client.pause("web"), ["pause"]),
        (lambda: engine.client.unpause("web"), ["unpause"]),
        (lambda: engine.client.rename("web", "shop"), ["rename"]),
        (lambda: engine.client.kill("shop", "SIGHUP"), ["kill 1"]),
        (lambda: engine.client.stop("shop"), ["kill 15", "disconnect", "die", "stop"]),
        (lambda: engine.client.remove_container("shop"), ["destroy"]),
    ]
    for act, said in steps:
        act()
        count = len(told) + len(said)
        until(lambda count=count: told_of(stream, told, count), f"{said}", detail=lambda: str(told))
        # Of those that one act makes, the order is the engine's own affair.
        assert sorted(map(shown, told[-len(said) :])) == sorted(said)
    assert [event.at_us for event in told] == sorted(event.at_us for event in told)
    stream.close()
    again: list[Event] = []
    stream = connection.events(began, 60, lambda: None)
    until(lambda: told_of(stream, again, len(told)), "told again")
    assert again == told
    stream.close()


def shown(event: Event) -> str:
    return event.action if event.signal is None else f"{event.action} {event.signal}"


def test_a_source_follows_it(engine: Any) -> None:
    with closing(DockerSource(engine.url, Rules("n1", "192.0.2.7"))) as source:
        assert source.registrations() == ()
        engine.run("web", ports={80: 8000}, command=OBEDIENT)
        until(lambda: source.wait(1) and len(source.registrations()) == 1, "registered")
        engine.client.kill("web")
        until(lambda: source.wait(1) and source.registrations() == (), "withdrawn")
