"""`discovery explain`: what is said of containers of a real engine, of services and URLs, in words."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from discovery.registrator import Registrator
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store
from discovery.stores.base import Store
from tests.lab import agent
from tests.lab.dockerd import IMAGE, DockerEngine
from tests.lab.thread import in_thread
from tests.lab.wait import until

RULES = Rules("n1", "192.0.2.7")
HEALTHCHECK = {"test": ["CMD", "test", "-e", "/tmp/good"], "interval": 100_000_000, "retries": 1}

Explain = Callable[..., str]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(open_store(url)) as opened:
        yield opened


@pytest.fixture
def explain(engine: DockerEngine, url: str) -> Explain:
    """What the command prints."""

    def run(*arguments: str, docker: str = engine.url, store: str = url, status: int = 0) -> str:
        common = [f"--docker={docker}", f"--store={store}", "--node=n1", "--address=192.0.2.7"]
        done = agent.run("explain", *common, *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return run


def findings(document: str) -> dict[str, dict[str, Any]]:
    """By subject, those of the only explanation."""
    (explanation,) = json.loads(document)["explanations"]
    return {each["subject"]: each for each in explanation["findings"]}


def test_each_port_of_a_container(engine: DockerEngine, store: Store, explain: Explain) -> None:
    """One is registered, one is ignored, one only exposed, one has a bad word."""
    engine.run(
        "web",
        ports={80: 8000, 81: 8001, 82: 8002, "83/udp": 8003},
        env={
            "SERVICE_NAME": "shop",
            "SERVICE_81_IGNORE": "1",
            "SERVICE_82_HOST_PORT": "99999",
            "SERVICE_80_WEIGHT": "heavy",
            "SECRET": "hunter2",
        },
    )
    source = DockerSource(engine.url, RULES)
    with in_thread(Registrator(store, source, ttl_seconds=10).run):
        until(lambda: len(store.snapshot("/services/").entries) >= 5, "registered")
        found = findings(explain("web", "--json"))
        text = explain("web")
    assert found["port 80/tcp"]["verdict"] == "registered"
    assert "instance n1:web:80 of service shop-80 at 192.0.2.7:8000" in found["port 80/tcp"]["reasons"][0]
    assert found["port 81/tcp"] == {
        "subject": "port 81/tcp",
        "verdict": "not registered",
        "reasons": ["SERVICE_IGNORE says so"],
    }
    assert found["port 82/tcp"]["verdict"] == "not registered"
    assert "SERVICE_HOST_PORT" in found["port 82/tcp"]["reasons"][0]
    assert found["port 83/udp"]["verdict"] == "registered"
    (weight,) = [each for name, each in found.items() if "SERVICE_WEIGHT" in name]
    assert weight["verdict"] == "left out"
    assert text.startswith("container web, image busybox:local: running\n  port 80/tcp: registered\n    ")
    assert "hunter2" not in text


def test_one_that_publishes_nothing(engine: DockerEngine, explain: Explain) -> None:
    made = engine.client.create_container(IMAGE, ["sleep", "60"], name="exposed", ports=[80])
    engine.client.start(made)
    engine.run("nothing", ports={})
    assert "port 80/tcp: not registered\n    it is exposed but not published" in explain("exposed")
    assert "it exposes and publishes no port" in explain("nothing")


def test_one_that_is_not_ready(engine: DockerEngine, store: Store, explain: Explain) -> None:
    engine.run("bad", ports={80: 8001}, healthcheck=HEALTHCHECK)
    until(lambda: "health check says unhealthy" in explain("bad"), "unhealthy")
    assert "once it is not: instance n1:bad:80 of service busybox" in explain("bad")
    engine.client.kill("bad")
    engine.run("web", ports={80: 8000})
    engine.client.pause("web")
    assert "it is paused" in explain("web")
    store.put({"/services/busybox/hosts/n1:web:80": "192.0.2.7:8000"})
    assert "about to be withdrawn" in explain("web")
    engine.client.unpause("web")
    engine.client.kill("web")
    until(lambda: "it is exited" in explain("web"), "ended")


def test_an_id_that_an_older_one_has(engine: DockerEngine, explain: Explain) -> None:
    engine.run("old", ports={80: 8000}, env={"SERVICE_ID": "one"})
    engine.run("new", ports={80: 8001}, env={"SERVICE_ID": "one"})
    assert "not registered, but to be" in explain("old")
    assert "not registered\n    id one is taken by another port or container" in explain("new")


def test_what_the_store_holds_otherwise(engine: DockerEngine, store: Store, explain: Explain) -> None:
    engine.run("web", ports={80: 8000})
    assert "no registrator of this node writes to this store now" in explain("web")
    attributes = json.dumps({"node": "n1", "container": "web"})
    store.put(
        {
            "/services/busybox/hosts/n1:web:80": "192.0.2.9:1",
            "/services/former/hosts/n1:web:80": "192.0.2.7:8000",
            "/services/former/attributes/n1:web:80": attributes,
        }
    )
    said = explain("web")
    assert "registered otherwise" in said
    assert "the store holds 192.0.2.9:1" in said
    assert "/services/former/hosts/n1:web:80: left over in the store" in said
    store.put({"/services/busybox/hosts/n1:web:80": "192.0.2.7:8000"})
    assert "port 80/tcp: registered\n" in explain("web")
    draining = json.dumps({"node": "n1", "container": "web", "draining": True})
    store.put({"/services/busybox/attributes/n1:web:80": draining})
    assert "registered, draining: it is about to stop" in explain("web")


def test_without_store_or_engine(engine: DockerEngine, store: Store, explain: Explain) -> None:
    engine.run("web", ports={80: 8000})
    store.put({"/services/shop/hosts/a": "192.0.2.7:8000"})
    away = explain("web", store="etcd3://127.0.0.1:1")
    assert away.startswith("the store cannot be asked: ")
    assert "port 80/tcp: to be registered" in away
    assert "whether the store holds it is not known" in away
    nothing = "unix:///nowhere/docker.sock"
    away = explain("shop", docker=nothing)
    assert away.startswith("the engine cannot be asked: docker.url: ")
    assert "edges: routed" in away
    assert "the first label of the host names it" in explain("http://shop.example.com/x")
    assert "cannot be asked" in explain("web", docker=nothing, status=1)
    assert "there is no container and no service 'nobody'" in explain("nobody", status=2)
