"""The words of nginx-proxy and of compose, where the rules say that they count."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import SchemaError
from discovery.sources.container import Port
from discovery.sources.docker import register
from discovery.sources.rules import Convention, Rules
from discovery.sources.virtual_host import virtual_options, virtual_port
from tests.unit.inspected import ALL, INTERNAL, NODE, container, registered


def by(*conventions: Convention, of: Rules = NODE) -> Rules:
    return replace(of, conventions=frozenset(conventions))


PROXY = by("nginx-proxy")
BOTH = by("registrator", "nginx-proxy")


# ---- VIRTUAL_PORT -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ports", "number"),
    [
        ({}, [80], None),
        ({"host": ""}, [80], None),
        ({"host": "a.b", "port": "8080"}, [80, 8080], 8080),
        ({"host": "a.b", "port": " 8080 "}, [], 8080),
        ({"host": "a.b"}, [8080], 8080),
        ({"host": "a.b"}, [80, 8080], 80),
        ({"port": "8080"}, [80], None),
    ],
)
def test_the_port(words: dict[str, str], ports: list[int], number: int | None) -> None:
    assert virtual_port(words, [Port(each, "tcp") for each in ports]) == number


@pytest.mark.parametrize(
    ("words", "ports", "reason"),
    [
        ({"host": "a.b"}, [81, 82], "VIRTUAL_PORT must name one"),
        ({"host": "a.b"}, [], "no port that can be reached"),
        ({"host": "a.b", "port": "http"}, [80], "VIRTUAL_PORT: 'http' is no port"),
    ],
)
def test_no_port(words: dict[str, str], ports: list[int], reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        virtual_port(words, [Port(each, "tcp") for each in ports])


def test_a_port_of_udp_is_none() -> None:
    assert virtual_port({"host": "a.b"}, [Port(53, "udp"), Port(8080, "tcp")]) == 8080


# ---- VIRTUAL_HOST, _PATH, _PROTO --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options", "problems"),
    [
        ({"host": "a.example.com"}, {"hosts": "a.example.com"}, []),
        ({"host": " A.Example.com , *.b.com,,a.example.com"}, {"hosts": "a.example.com,*.b.com"}, []),
        ({"host": "a.com,foo.bar.*"}, {"hosts": "a.com"}, ["VIRTUAL_HOST"]),
        ({"host": r"~^foo\.bar$"}, {}, ["VIRTUAL_HOST"]),
        ({"host": "a.com:8080"}, {}, ["VIRTUAL_HOST"]),
        ({"host": "a_b.com"}, {}, ["VIRTUAL_HOST"]),
        ({"host": "a\n.com"}, {}, ["VIRTUAL_HOST"]),
        ({"host": "x" * 300}, {}, ["VIRTUAL_HOST"]),
        ({"host": "a.com", "path": "/"}, {"hosts": "a.com"}, []),
        ({"host": "a.com", "path": "/web"}, {"path": "keep"}, ["VIRTUAL_PATH"]),
        ({"host": "a.com", "path": "/web/"}, {"path": "keep"}, ["VIRTUAL_PATH"]),
        ({"host": "a.com", "path": "/web", "dest": "/"}, {"path": "strip"}, ["VIRTUAL_PATH"]),
        ({"host": "a.com", "path": "/api/v1"}, {}, ["VIRTUAL_PATH"]),
        ({"host": "a.com", "proto": "https"}, {"hosts": "a.com", "protocol": "https"}, []),
        ({"host": "a.com", "proto": "grpc"}, {"hosts": "a.com", "protocol": "h2"}, []),
        ({"host": "a.com", "proto": "HTTP"}, {"hosts": "a.com"}, []),
        ({"host": "a.com", "host_multiports": "x"}, {"hosts": "a.com"}, ["VIRTUAL_HOST_MULTIPORTS"]),
    ],
)
def test_options(words: dict[str, str], options: dict[str, str], problems: list[str]) -> None:
    found, bad = virtual_options(words, "web")
    assert found == options
    assert [word for word, _ in bad] == problems


@pytest.mark.parametrize("protocol", ["uwsgi", "fastcgi", "x\n"])
def test_what_the_proxy_does_not_speak_is_not_served(protocol: str) -> None:
    with pytest.raises(SchemaError, match="is not spoken"):
        virtual_options({"host": "a.com", "proto": protocol}, "web")


@given(st.dictionaries(st.sampled_from(["host", "port", "path", "proto", "dest"]), st.text()))
def test_whatever_it_says_it_is_refused_in_words(words: dict[str, str]) -> None:
    try:
        if virtual_port(words, [Port(80, "tcp")]) is not None:
            options, problems = virtual_options(words, "web")
            assert all(text.isprintable() and text.isascii() for text in options.values())
            assert all(reason.isprintable() for _, reason in problems)
    except SchemaError as error:
        assert str(error).isprintable()


# ---- containers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "rules", "expected"),
    [
        ([], by("registrator"), {"busybox-80": "192.0.2.7:8095", "busybox-8080": "192.0.2.7:8096"}),
        ([], BOTH, {"busybox-80": "192.0.2.7:8095", "busybox-8080": "192.0.2.7:8096"}),
        # Only what has a host, and that needs no number.
        ([], PROXY, {"busybox": "192.0.2.7:8096"}),
        (["SERVICE_NAME=web"], PROXY, {"web": "192.0.2.7:8096"}),
        (["VIRTUAL_PORT=80"], PROXY, {"busybox": "192.0.2.7:8095"}),
        (["VIRTUAL_HOST="], PROXY, {}),
        (["VIRTUAL_PORT=9000"], PROXY, {}),
        (["VIRTUAL_PROTO=uwsgi"], PROXY, {}),
        (["SERVICE_IGNORE=1"], PROXY, {}),
        ([], replace(PROXY, explicit=True), {"busybox": "192.0.2.7:8096"}),
        ([], replace(BOTH, explicit=True), {"busybox-8080": "192.0.2.7:8096"}),
    ],
)
def test_containers(words: list[str], rules: Rules, expected: dict[str, str]) -> None:
    assert registered(register(container("nginx_proxy", *words), ALL, rules)) == expected


def test_others_are_nobodys_business_then() -> None:
    outcome = register(container("published_fixed"), ALL, PROXY)
    assert (outcome.registrations, outcome.problems) == ((), ())
    assert "not the port of a VIRTUAL_HOST" in outcome.decisions[0].reason


def test_without_the_setting_its_words_mean_nothing() -> None:
    plain = container("nginx_proxy", "VIRTUAL_PORT=9000", "VIRTUAL_PROTO=uwsgi")
    assert not register(plain, ALL, NODE).problems


def test_an_unpublished_port_is_served_at_the_containers_own_address_only() -> None:
    words = ["VIRTUAL_HOST=a.com", "VIRTUAL_PORT=9000"]
    (problem,) = register(container("exposed_only", *words), ALL, PROXY).problems
    assert problem.reason == "it is not published on the node"
    internal = register(container("exposed_only", *words), ALL, by("nginx-proxy", of=INTERNAL))
    assert registered(internal) == {"busybox": "172.29.42.12:9000"}
    hosted = register(container("host_network", *words), ALL, PROXY)
    assert registered(hosted) == {"busybox": "192.0.2.7:9000"}
    direct = register(container("macvlan", *words), ALL, PROXY)
    assert list(registered(direct).values()) == [f"{container('macvlan').networks['mac'][0]}:9000"]


def test_an_unpublished_port_is_not_one_of_several() -> None:
    found = container("published_fixed", "VIRTUAL_HOST=a.com", "VIRTUAL_PORT=9000")
    outcome = register(found, ALL, BOTH)
    assert registered(outcome) == {"busybox": "192.0.2.7:8000"}
    assert [each.reason for each in outcome.problems] == ["it is not published on the node"]


# ---- compose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conventions", "words", "services"),
    [
        (("registrator",), [], ["busybox"]),
        (("registrator", "compose"), [], ["shop-web"]),
        (("registrator", "compose-service"), [], ["web"]),
        (("registrator", "compose", "compose-service"), [], ["shop-web"]),
        (("registrator", "compose"), ["SERVICE_NAME=site"], ["site"]),
        (("nginx-proxy", "compose-service"), ["VIRTUAL_HOST=a.com"], ["web"]),
        (("nginx-proxy", "compose"), [], []),
    ],
)
def test_compose(conventions: tuple[Convention, ...], words: list[str], services: list[str]) -> None:
    found = register(container("compose", *words), ALL, by(*conventions)).registrations
    assert [each.service for each in found] == services


def test_two_projects_do_not_share_a_service_by_accident() -> None:
    labels = {"com.docker.compose.project": "blog", "com.docker.compose.service": "web"}
    rules = by("registrator", "compose")
    shop = register(container("compose"), ALL, rules).registrations[0]
    blog = register(container("compose", labels=labels), ALL, rules).registrations[0]
    assert (shop.service, blog.service) == ("shop-web", "blog-web")


@pytest.mark.parametrize(
    ("conventions", "words", "services"),
    [
        (("registrator",), [], ["busybox"]),
        (("registrator", "compose"), [], []),
        (("registrator", "compose-service"), [], []),
        (("registrator", "compose"), ["SERVICE_NAME=job"], ["job"]),
    ],
)
def test_a_one_off_container_is_no_instance_of_its_service(
    conventions: tuple[Convention, ...], words: list[str], services: list[str]
) -> None:
    outcome = register(container("compose_run", *words), ALL, by(*conventions))
    assert [each.service for each in outcome.registrations] == services
    assert not outcome.problems
