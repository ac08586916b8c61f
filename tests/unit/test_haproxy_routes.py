"""Services → the routing maps."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalog import Problem, Service
from discovery.haproxy.routes import (
    BACKENDS,
    HOSTS,
    KEEP,
    MAPS,
    PATHS,
    REDIRECT,
    claim_hosts,
    map_text,
    routes_of,
)


def service(name: str, scheme: Any = "http", **options: str) -> Service:
    return Service(name, scheme, options=options)


@pytest.mark.parametrize(
    ("of", "routes"),
    [
        (service("web"), {HOSTS: {"web": "web"}, PATHS: {"web": "web"}}),
        (
            service("web", path="keep", redirect="https"),
            {
                HOSTS: {"web": "web"},
                PATHS: {"web": "web"},
                KEEP: {"web": "keep"},
                REDIRECT: {"web": "https"},
            },
        ),
        (service("web", path="strip", redirect="none"), {HOSTS: {"web": "web"}, PATHS: {"web": "web"}}),
        # which service has a further host depends on the others
        (service("web", hosts="www.example.com"), {HOSTS: {"web": "web"}, PATHS: {"web": "web"}}),
        (service("db", "tcp", path="keep", redirect="https", hosts="db.example.com"), {}),
    ],
)
def test_one_service_makes_its_own_entries(of: Service, routes: object) -> None:
    assert routes_of(of) == routes
    assert set(routes_of(of)) <= set(MAPS) - {BACKENDS}


@pytest.mark.parametrize("separator", [",", " ", ", ", "\n"])
def test_hosts_are_claimed_by_the_service_that_lists_them(separator: str) -> None:
    hosts = separator.join(("", "a.example.com", "*.example.com", "*.local", "A.example.com", ""))
    winners, problems = claim_hosts([service("web", hosts=hosts)])
    assert winners == {"a.example.com": "web", "*.example.com": "web", "*.local": "web"}
    assert problems == ()


def test_of_two_claims_the_first_by_name_holds() -> None:
    claims = [service("api", hosts="x.org,y.org"), service("web", hosts="z.org,x.org,y.org")]
    winners, problems = claim_hosts(claims)
    assert winners == {"x.org": "api", "y.org": "api", "z.org": "web"}
    assert problems == tuple(
        Problem("web", "/services/web/options/hosts", f"host {host} is a host of service api")
        for host in ("x.org", "y.org")
    )


def test_a_wildcard_and_a_whole_name_below_it_are_two_hosts() -> None:
    winners, problems = claim_hosts([service("api", hosts="*.x.org"), service("web", hosts="a.x.org")])
    assert winners == {"*.x.org": "api", "a.x.org": "web"}
    assert not problems


def test_a_tcp_service_takes_no_host() -> None:
    assert claim_hosts([service("db", "tcp", hosts="x.org"), service("web", hosts="x.org")]) == (
        {"x.org": "web"},
        (),
    )


@pytest.mark.parametrize(
    "host",
    [
        "web",  # the label of a service, perhaps
        "*",
        "*.",
        "*.*.org",
        "a.*.org",
        "a*.org",
        ".org",
        "a..org",
        "a.org.",
        "-a.org",
        "a-.org",
        "10.0.0.1",
        "*.0.0.1",
        "[::1]",
        "a.org:80",
        "a.org/x",
        "ä.org",
        "a.org\0",
        "a" * 64 + ".org",
        "a.b" * 84 + ".org",
    ],
)
def test_what_is_no_host_is_left_out_with_the_reason(host: str) -> None:
    winners, problems = claim_hosts([service("web", hosts=f"x.org,{host}")])
    assert winners == {"x.org": "web"}
    assert [(problem.service, problem.consequence) for problem in problems] == [("web", "left out")]
    assert problems[0].reason.isprintable()
    assert len(problems[0].reason) < 200


@given(st.lists(st.text() | st.text("ab.*-1\n #"), max_size=4))
def test_no_text_makes_more_than_one_line(texts: list[str]) -> None:
    claims = [service(f"s{i}", hosts=text) for i, text in enumerate(texts)]
    winners, _ = claim_hosts(claims)
    lines = map_text(winners).splitlines()
    assert len(lines) == len(winners)
    # A key of one word that HAProxy does not take for a comment.
    assert all(
        len(line.split(" ")) == 2 and line[0] in "*_abcdefghijklmnopqrstuvwxyz0123456789" for line in lines
    )


def test_a_map_is_lines_of_key_and_value() -> None:
    assert map_text({"*.x.org": "web", "web": "web"}) == "*.x.org web\nweb web\n"
    assert map_text({}) == ""
