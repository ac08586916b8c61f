"""Catalog → Model, without any text."""

from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Attributes, Catalog, Instance, Problem, Service
from discovery.errors import ConfigError
from discovery.haproxy.model import Listener, Server, build
from discovery.haproxy.settings import ProxySettings

STATE = Path("/var/lib/discovery")


def settings(**more: Any) -> ProxySettings:
    return ProxySettings(STATE, (Path("templates"),), **more)


def catalog(*services: Service) -> Catalog:
    return Catalog(1, {each.name: each for each in services})


def test_servers_carry_the_instances_weight_and_one_that_drains_is_none() -> None:
    web = Service(
        "web",
        instances=(
            Instance("0", "10.0.0.1", 80),
            Instance("a:b", "fd00::1", 81, Attributes(weight=7)),
            Instance("c", "10.0.0.2", 82, Attributes(weight=7, draining=True)),
        ),
    )
    assert build(catalog(web), settings()).backends["web"].servers == (
        Server("0", "10.0.0.1:80", 1),
        Server("a:b", "[fd00::1]:81", 7),
    )


def test_an_unchanged_service_keeps_its_backend() -> None:
    web, api = Service("web"), Service("api")
    before = build(catalog(web, api), settings())
    after = build(catalog(web, Service("api", options={"path": "keep"})), settings(), before)
    assert after.backends["web"] is before.backends["web"]
    assert after.backends["api"] is not before.backends["api"]
    assert after.backends["api"].shape == before.backends["api"].shape


def test_a_tcp_service_is_reached_by_its_port_only() -> None:
    model = build(catalog(Service("db", "tcp"), Service("mq", "tcp", 5672)), settings())
    assert list(model.backends) == ["mq"]
    assert model.listeners == (Listener("mq", "tcp", "*", 5672),)


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (53, "port 53 is used by dns.listen"),
        (80, "port 80 is used by proxy.http"),
        (8080, "port 8080 is used by proxy.http"),
        (443, "port 443 is used by proxy.https"),
        (7000, "port 7000 is the port of service a"),
    ],
)
def test_a_port_that_is_ours_or_anothers_is_refused(port: int, reason: str) -> None:
    of = settings(
        http=("*:80", "127.0.0.1:8080"),
        https=("*:443",),
        certs=Path("/etc/certs"),
        reserved_ports={53: "dns.listen"},
    )
    model = build(catalog(Service("a", host_port=7000), Service("b", host_port=port)), of)
    assert [listener.service for listener in model.listeners] == ["a"]
    assert model.problems == (Problem("b", "/services/b/host_port", reason),)
    assert "b" in model.backends


def test_a_redirect_to_nowhere_is_reported() -> None:
    web = Service("web", options={"redirect": "https"})
    (problem,) = build(catalog(web), settings()).problems
    assert (problem.service, problem.subject) == ("web", "/services/web/options/redirect")
    with_https = settings(https=("*:443",), certs=Path("/etc/certs"))
    assert build(catalog(web), with_https).problems == ()


def test_listeners_left_out_are_reported() -> None:
    model = build(catalog(Service("a", host_port=1000), Service("b", "tcp", 2000)), settings())
    left = model.without({2000: "is used by another program on this host"})
    assert [listener.service for listener in left.listeners] == ["a"]
    assert left.problems[0].reason == "port 2000 is used by another program on this host"
    assert model.without({}) is model


@pytest.mark.parametrize("bad", ["a b", "a\nb", 'a"', "a'", "$HOME", "a#b", "a\\", "ü", "", "a\0", "-"])
def test_what_is_no_plain_word_is_left_out_with_a_reason(bad: str) -> None:
    services = (
        Service("web", instances=(Instance("0", "10.0.0.1", 80), Instance(bad, "10.0.0.2", 80))),
        Service("api", instances=(Instance("0", "10.0.0.1" + bad + ".", 80),)) if bad else Service("api"),
    )
    model = build(catalog(*services, Service(bad)), settings())
    assert list(model.backends) == ["api", "web"]
    assert [server.id for server in model.backends["web"].servers] == ["0"]
    assert model.backends["api"].servers == ()
    assert len(model.problems) == (3 if bad else 2)
    assert all(each.reason.isprintable() and each.subject.isprintable() for each in model.problems)


@pytest.mark.parametrize(("servers", "stretch"), [(0, 1), (4000, 1), (4001, 2), (8001, 4), (20000, 8)])
def test_checks_are_fewer_per_server_when_there_are_many(servers: int, stretch: int) -> None:
    many = tuple(Instance(str(number), "10.0.0.1", 80) for number in range(servers))
    assert build(catalog(Service("web", instances=many)), settings()).check_stretch == stretch


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("proxy.http", {"http": ("80",)}),
        ("proxy.http", {"http": ("*:0",)}),
        ("proxy.http", {"http": ("*:65536",)}),
        ("proxy.http", {"http": ("host:80",)}),
        ("proxy.http", {"http": ("*:80 accept-proxy",)}),
        ("proxy.http", {"http": ()}),
        ("proxy.https", {"https": ("*:x",), "certs": Path("/c")}),
        ("proxy.https", {"https": ("*:443",)}),
        ("proxy.certs", {"certs": Path("/etc/my certs")}),
        ("proxy.certs", {"certs": Path("relative")}),
        ("proxy.bind_address", {"bind_address": "eth0"}),
    ],
)
def test_settings_that_cannot_be_name_themselves(setting: str, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**more)
    assert caught.value.setting == setting


@pytest.mark.parametrize("state", ["/var/lib/dis covery", "/a\nb", "relative", "/" + "x" * 90])
def test_a_state_directory_that_haproxy_cannot_read_is_refused(state: str) -> None:
    with pytest.raises(ConfigError, match="state_dir"):
        ProxySettings(Path(state), (Path("templates"),))
