"""Containers as a whole: what is read of them, and what holds whatever they say."""

import ipaddress
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discovery.catalog import Registration
from discovery.errors import SchemaError
from discovery.schema import (
    VALUE_BYTES,
    encode_attributes,
    parse_address,
    parse_attributes,
    parse_id,
    parse_name,
)
from discovery.sources.container import Binding, Container, Port, read_container, signal_number
from discovery.sources.docker import Rules, register, register_all
from discovery.sources.words import Words, read_words
from tests.unit.inspected import ALL, NAMES, NODE, V6, container, document

EVERYTHING = replace(
    NODE,
    conventions=frozenset({"registrator", "nginx-proxy", "compose"}),
    tags=("all",),
    check_commands=True,
)


# ---- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"), [("SIGTERM", 15), ("TERM", 15), ("15", 15), ("sigint", 2), ("SIGRTMIN+3", 37)]
)
def test_stop_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


def test_the_state_is_read() -> None:
    found = container("stop_signal")
    assert (found.stop_signal, found.stop_seconds) == (37, 30.0)
    assert container("published_fixed").stop_signal == 15
    assert container("created").started_us == 0
    assert container("published_fixed").started_us > container("published_fixed").created_us > 1e15


@pytest.mark.parametrize(
    "ports",
    [
        {"80/tcp": [{"HostIp": "", "HostPort": ""}]},
        {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "0"}]},
        {"80/tcp": []},
        {"80/tcp": None},
    ],
)
def test_a_binding_without_a_port_is_none_yet(ports: Any) -> None:
    found = document("published_fixed")
    found["NetworkSettings"]["Ports"] = ports
    assert read_container(found).published == {}
    assert read_container(found).exposed == {Port(80, "tcp")}


@pytest.mark.parametrize(
    "ports",
    [
        {"80/tcp": [{"HostIp": "nowhere", "HostPort": "80"}]},
        {"80/tcp": [{"HostIp": "", "HostPort": "70000"}]},
        {"x/tcp": None},
        {"70000/tcp": None},
    ],
)
def test_a_document_that_is_not_understood(ports: Any) -> None:
    found = document("published_fixed")
    found["NetworkSettings"]["Ports"] = ports
    for broken in ({}, {"Id": "x"}, {**found, "State": None}, found):
        with pytest.raises(SchemaError, match="not understood"):
            read_container(broken)


# ---- decisions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_port_has_a_decision_and_every_decision_a_reason(name: str) -> None:
    for internal in (False, True):
        found = container(name, status="running", health=None)
        outcome = register(found, ALL, replace(NODE, internal=internal))
        assert {each.port for each in outcome.decisions} >= found.exposed
        assert [each.registration for each in outcome.decisions if each.registration] == list(
            outcome.registrations
        )
        for decision in outcome.decisions:
            assert (decision.container_id, decision.container) == (found.id, name)
            assert decision.reason
            if decision.registration is None:
                assert decision.check is None


@pytest.mark.parametrize(
    ("name", "words", "port", "reason"),
    [
        (
            "published_fixed",
            [],
            80,
            "instance n1:published_fixed:80 of service busybox at 192.0.2.7:8000: published",
        ),
        ("published_on_address", [], 80, "at 172.29.42.1:8006: published on this address"),
        ("published_on_loopback", [], 80, "published on 127.0.0.1, where no other node"),
        ("exposed_only", [], 80, "exposed but not published"),
        ("three_protocols", [], 53, "SCTP is not registered"),
        ("published_fixed", ["SERVICE_IGNORE=1"], 80, "SERVICE_IGNORE"),
        ("published_fixed", ["SERVICE_ID=/"], 80, "an instance id is"),
        ("compose_run", [], 80, "one-off"),
        ("macvlan", [], 80, "its own address on network mac"),
        ("host_network", [], 8050, "on the host's network, the node's address"),
    ],
)
def test_reasons(name: str, words: list[str], port: int, reason: str) -> None:
    decisions = register(container(name, *words), ALL, EVERYTHING).decisions
    assert any(each.port.number == port and reason in each.reason for each in decisions)


def test_more_than_a_value_may_hold_costs_the_port() -> None:
    words = [f"SERVICE_80_X{number}={'😀' * 1000}" for number in range(6)]
    outcome = register(container("two_ports", *words), ALL, NODE)
    assert [each.instance.port for each in outcome.registrations] == [8011]
    assert "64 KiB" in outcome.problems[0].reason


# ---- properties -------------------------------------------------------------------------------------

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""No example is slow, but the machine may be."""

PARTS = [
    "NAME",
    "ID",
    "TAGS",
    "SCHEME",
    "HOST_PORT",
    "PATH",
    "IGNORE",
    "NETWORK",
    "WEIGHT",
    "REGION",
    "80_NAME",
]
PARTS += [
    "CHECK_HTTP",
    "CHECK_TCP",
    "CHECK_CMD",
    "CHECK_INTERVAL",
    "CHECK_TIMEOUT",
    "CHECK_RISE",
    "CHECK_FALL",
]
VIRTUAL = ["HOST", "PORT", "PATH", "PROTO", "DEST"]
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        ["/", "/x", "true", "10s", "1", "web", "a.example.com,*.b.c", "80", "8080", "https", "front"]
    ),
)
SAID = st.lists(
    st.tuples(
        st.sampled_from([f"SERVICE_{part}" for part in PARTS] + [f"VIRTUAL_{part}" for part in VIRTUAL]),
        TEXTS,
    )
)
ADDRESSES = st.sampled_from(
    ["", "0.0.0.0", "::", "127.0.0.1", "::1", "10.0.0.9", "fd00::9", "fe80::1", "fe80::1%eth0", "224.0.0.1"]
)
PORTS = st.builds(Port, st.integers(1, 65535), st.sampled_from(["tcp", "udp", "sctp"]))
BINDINGS = st.lists(st.builds(Binding, ADDRESSES, st.integers(1, 65535)), max_size=4).map(tuple)
OWN = st.lists(st.sampled_from(["10.0.0.9", "172.18.0.2", "fd00::9"]), max_size=2, unique=True).map(tuple)


@st.composite
def containers(draw: Callable[[Any], Any], number: int = 0) -> Container:
    said = draw(SAID)
    modes = ["default", "front", "host", "none", "mac", "container:0", "container:1", "container:x"]
    return replace(
        container("published_fixed"),
        id=str(number),
        name=f"c{number}",
        image=draw(st.sampled_from(["web", "sha256:0123", "r:5000/a/b:1"])),
        created_us=draw(st.integers(0, 3)),
        network_mode=draw(st.sampled_from(modes)),
        published=draw(st.dictionaries(PORTS, BINDINGS.filter(bool), max_size=3)),
        exposed=frozenset(draw(st.lists(PORTS, max_size=3))),
        requested=frozenset(draw(st.lists(PORTS, max_size=3))),
        networks=draw(st.dictionaries(st.sampled_from(["front", "back", "mac"]), OWN)),
        words=read_words([f"{name}={text}" for name, text in said], {}),
    )


RULES = st.builds(
    Rules,
    node=st.just("n1"),
    address=st.sampled_from(["192.0.2.7", "2001:db8::7", "127.0.0.1"]),
    internal=st.booleans(),
    explicit=st.booleans(),
    network=st.sampled_from([None, "front"]),
    direct=st.sampled_from([frozenset(), frozenset({"mac"})]),
    conventions=st.sets(
        st.sampled_from(["registrator", "nginx-proxy", "compose", "compose-service"]), min_size=1
    ).map(frozenset),
    check_commands=st.booleans(),
)


@PATIENT
@given(
    st.lists(st.integers(0, 3), unique=True).flatmap(lambda ids: st.tuples(*map(containers, ids))),
    RULES,
    st.randoms(),
)
def test_whatever_containers_say_the_result_keeps_the_contract(
    found: tuple[Container, ...], rules: Rules, random: Any
) -> None:
    running = {each.id: each for each in found}
    outcome = register_all(found, running, rules)
    keys = [(each.service, each.instance.id) for each in outcome.registrations]
    assert len(set(keys)) == len(keys), "ids are unique"
    for each in outcome.registrations:
        assert_contract(each, rules)
    for problem in outcome.problems:
        assert problem.reason.isprintable()
        assert problem.subject.isprintable()
    for decision in outcome.decisions:
        assert decision.reason.isprintable()
    shuffled = list(found)
    random.shuffle(shuffled)
    assert register_all(shuffled, dict(reversed(running.items())), rules) == outcome, "order means nothing"


def assert_contract(registration: Registration, rules: Rules) -> None:
    instance = registration.instance
    parse_name(registration.service)
    parse_id(instance.id)
    assert parse_address(instance.address) == (instance.host, instance.port)
    address = ipaddress.ip_address(instance.host)
    assert not address.is_link_local
    assert not address.is_loopback or ipaddress.ip_address(rules.address).is_loopback
    text = encode_attributes(instance.attributes)
    # Readers show tags as printable text.
    assert replace(parse_attributes(text), tags=()) == replace(instance.attributes, tags=())
    assert len(text.encode()) <= VALUE_BYTES


SECRETS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=12, max_size=30).map(
    "hunter2".__add__
)
NAMES_OF_SECRETS = st.text(min_size=1).filter(
    lambda name: "=" not in name and not name.startswith(("SERVICE_", "VIRTUAL_"))
)


@PATIENT
@given(
    st.dictionaries(NAMES_OF_SECRETS, SECRETS, min_size=1), st.dictionaries(NAMES_OF_SECRETS, SECRETS), SAID
)
def test_nothing_else_of_an_environment_is_ever_kept(
    environment: dict[str, str], labels: dict[str, str], said: list[tuple[str, str]]
) -> None:
    labels = {name: value for name, value in labels.items() if not name.startswith("com.docker.compose.")}
    for name in ("published_fixed", "two_ports", "macvlan"):
        found = document(name)
        words = [f"{word}={text}" for word, text in said]
        found["Config"]["Env"] = [f"{key}={value}" for key, value in environment.items()] + words
        found["Config"]["Labels"] = labels
        kept = read_container(found)
        outcome = register_all([kept], {kept.id: kept}, EVERYTHING)
        assert "hunter2" not in repr(kept)
        assert "hunter2" not in repr(outcome)
    # The library's error would quote it.
    found["Created"] = next(iter(environment.values()))
    with pytest.raises(SchemaError) as raised:
        read_container(found)
    assert "hunter2" not in str(raised.value)


def test_secrets_of_a_captured_container_are_not_kept() -> None:
    for name in ("environment_and_labels", "nginx_proxy"):
        assert "hunter" in json.dumps(document(name))
        kept = repr(container(name))
        assert "hunter" not in kept
        assert "com.example" not in kept


def test_an_ipv6_node_takes_the_port_that_ipv6_is_published_on() -> None:
    published = {Port(80, "tcp"): (Binding("0.0.0.0", 8), Binding("::", 9))}
    found = replace(container("published_fixed"), published=published, words=Words())
    assert [each.instance.address for each in register(found, ALL, V6).registrations] == ["[2001:db8::7]:9"]
    assert [each.instance.address for each in register(found, ALL, NODE).registrations] == ["192.0.2.7:8"]
