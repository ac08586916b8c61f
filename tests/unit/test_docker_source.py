"""Inspect documents of a real engine → registrations; `tests.lab.capture_inspect` made them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalog import Attributes, Registration
from discovery.errors import SchemaError
from discovery.schema import parse_address, parse_id, parse_name
from discovery.sources.container import Container, Port, read_container, signal_number
from discovery.sources.docker import Outcome, Rules, image_name, register, register_all
from discovery.sources.options import split_tags
from discovery.sources.words import read_words

DIRECTORY = Path(__file__).parent / "inspect"
NODE = Rules(node="n1", address="192.0.2.7")
INTERNAL = replace(NODE, internal=True)


def document(name: str) -> Any:
    return json.loads((DIRECTORY / f"{name}.json").read_text())


def container(name: str, *environment: str, **changes: Any) -> Container:
    """A captured container, with further environment and changed fields."""
    found = document(name)
    found["Config"]["Env"] = [*(found["Config"]["Env"] or []), *environment]
    return replace(read_container(found), **changes)


ALL = {found.id: found for found in (container(path.stem) for path in DIRECTORY.glob("*.json"))}


def registered(outcome: Outcome) -> dict[str, str]:
    """Addresses by service; `/udp` after the names of those of UDP."""
    return {
        each.service + ("/udp" if each.instance.protocol == "udp" else ""): each.instance.address
        for each in outcome.registrations
    }


def only(outcome: Outcome) -> Registration:
    assert not outcome.problems
    (found,) = outcome.registrations
    return found


# ---- which ports, at which addresses ----------------------------------------------------------------

PUBLISHED = {
    "published_random": {"busybox": "192.0.2.7:32768"},
    "published_fixed": {"busybox": "192.0.2.7:8000"},
    "published_twice": {"busybox": "192.0.2.7:8003"},
    "published_on_loopback": {},
    "published_on_address": {"busybox": "172.29.42.1:8006"},
    "published_on_ipv6": {},
    "two_ports": {"busybox-80": "192.0.2.7:8010", "busybox-443": "192.0.2.7:8011"},
    "port_range": {
        "busybox-90": "192.0.2.7:8020",
        "busybox-91": "192.0.2.7:8021",
        "busybox-92": "192.0.2.7:8022",
    },
    "tcp_and_udp": {"busybox-53": "192.0.2.7:8030", "busybox-53/udp": "192.0.2.7:8031"},
    "udp_only": {"busybox/udp": "192.0.2.7:8032"},
    "exposed_only": {},
    "no_ports": {},
    "environment_and_labels": {"from-label": "192.0.2.7:8040"},
    "host_network": {"busybox-8050": "192.0.2.7:8050", "named": "192.0.2.7:8052"},
    "two_networks": {"busybox": "192.0.2.7:8060"},
    "container_network": {"tls": "192.0.2.7:8011"},
    "health_starting": {},
    "health_good": {"busybox": "192.0.2.7:8071"},
    "health_bad": {},
    "no_healthcheck": {"busybox": "192.0.2.7:8073"},
    "stop_signal": {"busybox": "192.0.2.7:8074"},
    "paused": {},
    "exited": {},
    "created": {},
    "registry_image": {"web_app": "192.0.2.7:8078"},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in DIRECTORY.glob("*.json")))
def test_published_ports(name: str) -> None:
    assert registered(register(container(name), ALL, NODE)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("published_fixed", {"busybox": "172.29.42.3:80"}),
        ("published_on_loopback", {"busybox": "172.29.42.5:80"}),
        ("exposed_only", {"busybox": "172.29.42.12:80"}),
        ("no_ports", {}),
        ("two_networks", {"busybox-80": "172.19.0.2:80", "busybox-81": "172.19.0.2:81"}),
        ("host_network", {"busybox-8050": "192.0.2.7:8050", "named": "192.0.2.7:8052"}),
        ("container_network", {"tls": "172.29.42.8:443"}),
        ("paused", {}),
    ],
)
def test_internal_addresses(name: str, expected: dict[str, str]) -> None:
    assert registered(register(container(name), ALL, INTERNAL)) == expected


def test_the_network_of_several_is_chosen_by_word_then_setting_then_name() -> None:
    front, back = {"busybox-80": "172.18.0.2:80"}, {"busybox-80": "172.19.0.2:80"}
    two = container("two_networks", exposed=frozenset([Port(80, "tcp"), Port(53, "sctp")]))
    assert registered(register(two, ALL, INTERNAL)) == back
    assert registered(register(two, ALL, replace(INTERNAL, network="front"))) == front
    assert registered(register(two, ALL, replace(INTERNAL, network="elsewhere"))) == back
    word = replace(two, words=read_words(["SERVICE_NETWORK=front"], {}))
    assert registered(register(word, ALL, replace(INTERNAL, network="back"))) == front
    wrong = replace(two, words=read_words(["SERVICE_NETWORK=elsewhere"], {}))
    assert "elsewhere" in register(wrong, ALL, INTERNAL).problems[0].reason


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [
        ("published_on_loopback", "192.0.2.7", "127.0.0.1, where no other node can reach it"),
        ("published_on_ipv6", "192.0.2.7", "another IP version"),
    ],
)
def test_what_nobody_can_reach_is_reported(name: str, address: str, reason: str) -> None:
    outcome = register(container(name), ALL, replace(NODE, address=address))
    assert not outcome.registrations
    (problem,) = outcome.problems
    assert (problem.subject, problem.consequence) == (f"container {name} port 80", "left out")
    assert reason in problem.reason


def test_an_ipv6_node_and_a_loopback_node() -> None:
    v6 = replace(NODE, address="2001:db8::7")
    assert only(register(container("published_on_ipv6"), ALL, v6)).instance.address == "[2001:db8::7]:8007"
    assert only(register(container("published_fixed"), ALL, v6)).instance.address == "[2001:db8::7]:8000"
    # Who asks for loopback, on a single machine, reaches what is published there.
    loopback = replace(NODE, address="127.0.0.1")
    found = only(register(container("published_on_loopback"), ALL, loopback))
    assert found.instance.address == "127.0.0.1:8005"


def test_a_shared_network_whose_owner_is_gone_is_reported() -> None:
    outcome = register(container("container_network"), {}, NODE)
    assert not outcome.registrations
    assert "does not run" in outcome.problems[0].reason


def test_a_name_without_a_port_is_reported_unless_ignored() -> None:
    (problem,) = register(container("exposed_only", "SERVICE_NAME=web"), ALL, NODE).problems
    assert "publishes no port" in problem.reason
    ignored = container("exposed_only", "SERVICE_NAME=web", "SERVICE_IGNORE=1")
    assert not register(ignored, ALL, NODE).problems


# ---- words ------------------------------------------------------------------------------------------


def test_everything_that_is_registered() -> None:
    found = only(register(container("environment_and_labels", "SERVICE_HOST_PORT=9000"), ALL, NODE))
    assert found.service == "from-label"
    assert found.instance.id == "n1:environment_and_labels:80"
    assert found.instance.attributes == Attributes(
        scheme="tcp",
        host_port=9000,
        node="n1",
        container="environment_and_labels",
        image="busybox:local",
        tags=("c",),
    )


def test_nothing_else_of_the_environment_is_kept() -> None:
    assert "hunter2" in json.dumps(document("environment_and_labels"))
    kept = repr(container("environment_and_labels"))
    assert "hunter" not in kept
    assert "com.example" not in kept


@pytest.mark.parametrize(
    ("words", "services"),
    [
        (["SERVICE_NAME=web"], ["web-443", "web-80"]),
        (["SERVICE_80_NAME=web"], ["busybox-443", "web"]),
        (["SERVICE_NAME=web", "SERVICE_443_NAME=tls"], ["tls", "web-80"]),
        (["SERVICE_80_NAME=a", "SERVICE_443_NAME=b"], ["a", "b"]),
        (["SERVICE_80_NAME=web", "SERVICE_443_NAME=web"], ["web", "web"]),
        # An ignored port still counts as one of several, as it always did.
        (["SERVICE_443_IGNORE=true"], ["busybox-80"]),
        (["SERVICE_IGNORE=true"], []),
        (["SERVICE_IGNORE=true", "SERVICE_80_IGNORE="], ["busybox-80"]),
        (["SERVICE_IGNORE="], ["busybox-443", "busybox-80"]),
        (["service_name=web", "SERVICE_Name=Web_1"], ["web_1-443", "web_1-80"]),
        (["SERVICE_NAME=Web.App!"], ["web-app-443", "web-app-80"]),
        ([f"SERVICE_NAME={'x' * 80}"], [f"{'x' * 59}-443", f"{'x' * 60}-80"]),
        (["SERVICE_NAME"], ["busybox-443", "busybox-80"]),
    ],
)
def test_names(words: list[str], services: list[str]) -> None:
    outcome = register(container("two_ports", *words), ALL, NODE)
    assert not outcome.problems
    assert sorted(each.service for each in outcome.registrations) == services


def test_explicit() -> None:
    explicit = replace(NODE, explicit=True)
    none = register(container("two_ports"), ALL, explicit)
    assert (none.registrations, none.problems) == ((), ())
    assert len(register(container("two_ports", "SERVICE_NAME=a"), ALL, explicit).registrations) == 2
    assert registered(register(container("two_ports", "SERVICE_80_NAME=a"), ALL, explicit)) == {
        "a": "192.0.2.7:8010"
    }


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("SERVICE_80_SCHEME=ftp", "unknown scheme"),
        ("SERVICE_80_HOST_PORT=99999", "SERVICE_HOST_PORT"),
        ("SERVICE_80_HOST_PORT=80\n  bind :1", "SERVICE_HOST_PORT"),
        ("SERVICE_80_ID=../x", "instance id"),
        ("SERVICE_80_NAME=/../", "no service name"),
        (f"SERVICE_80_TAGS={'x' * 5000}", "SERVICE_TAGS"),
    ],
)
def test_a_bad_word_costs_its_own_port_only(word: str, reason: str) -> None:
    outcome = register(container("two_ports", word), ALL, NODE)
    assert registered(outcome) == {"busybox-443": "192.0.2.7:8011"}
    (problem,) = outcome.problems
    assert problem.subject == "container two_ports port 80"
    assert reason in problem.reason


def test_a_bad_option_costs_only_itself() -> None:
    outcome = register(container("published_fixed", "SERVICE_PATH=sideways", "SERVICE_REGION=x"), ALL, NODE)
    assert outcome.registrations[0].instance.attributes.options == {}
    assert outcome.problems[0].subject.endswith("SERVICE_PATH")
    good = only(register(container("published_fixed", "SERVICE_80_PATH=keep"), ALL, NODE))
    assert good.instance.attributes.options == {"path": "keep"}


def test_one_id_goes_to_the_older_container() -> None:
    old = container("published_fixed", "SERVICE_ID=one", created_us=1)
    new = container("published_twice", "SERVICE_ID=one", created_us=2)
    outcome = register_all([new, old], ALL, NODE)
    assert registered(outcome) == {"busybox": "192.0.2.7:8000"}
    assert outcome.problems[0].subject == "container published_twice"


def test_an_image_without_a_name_needs_one() -> None:
    found = document("published_fixed")
    found["Config"]["Image"] = found["Image"].removeprefix("sha256:")[:12]
    nameless = read_container(found)
    assert "SERVICE_NAME" in register(nameless, ALL, NODE).problems[0].reason
    named = replace(nameless, words=read_words(["SERVICE_NAME=web"], {}))
    assert only(register(named, ALL, NODE)).service == "web"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("redis", "redis"),
        ("redis:7", "redis"),
        ("gliderlabs/foobar:latest", "foobar"),
        ("localhost:5000/web", "web"),
        ("registry.example:5000/a/b/web:1.2@sha256:0123", "web"),
        ("web@sha256:0123", "web"),
    ],
)
def test_image_names(image: str, name: str) -> None:
    assert image_name(image) == name


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", ()),
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (",a,,b,", ("a", "b")),
        (r"a\,b,c", ("a,b", "c")),
        (r"/(;\,:-_)/", ("/(;,:-_)/",)),
    ],
)
def test_tags(text: str, tags: tuple[str, ...]) -> None:
    assert split_tags(text) == tags


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


def test_a_document_that_is_not_understood() -> None:
    for broken in ({}, {"Id": "x"}, {**document("published_fixed"), "State": None}):
        with pytest.raises(SchemaError):
            read_container(broken)


WORDS = ["NAME", "ID", "TAGS", "SCHEME", "HOST_PORT", "PATH", "IGNORE", "80_NAME"]


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.text())))
def test_whatever_the_words_say_the_result_keeps_the_contract(words: list[tuple[str, str]]) -> None:
    base = container("two_ports")
    said = replace(base, words=read_words([f"SERVICE_{name}={text}" for name, text in words], {}))
    outcome = register_all([said], ALL, NODE)
    for each in outcome.registrations:
        parse_name(each.service)
        parse_id(each.instance.id)
        parse_address(each.instance.address)
    for problem in outcome.problems:
        assert problem.reason.isprintable()
        assert problem.subject.isprintable()
