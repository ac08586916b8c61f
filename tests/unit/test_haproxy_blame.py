"""Whose fault it is that HAProxy refuses a configuration."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.haproxy.blame import bisect, blame, blame_certificates
from discovery.haproxy.certificates import Certificate

CONFIG = """\
global
    default-path config
defaults http
    mode http

frontend edge from http
    bind *:80
    use_backend service:%[var(txn.service)]
    default_backend service:web
  frontend port:5432 from tcp
    bind *:5432
    default_backend service:db
frontend port:7000 from http
    default_backend %[var(txn.service)]
userlist service:web
    user a password b

backend service:web from http
    server s1 10.0.0.1:80

    no such word
backend service:db from tcp
    server service:web 10.0.0.2:80
backend spare:http:1 from http
    server s1 10.0.0.3:80
"""


def line_of(text: str) -> int:
    return [line.strip() for line in CONFIG.splitlines()].index(text) + 1


def alert(text: str) -> str:
    return f"[NOTICE]   (1) : haproxy version is 2.6.12\n[ALERT]    (1) : config : {text}\n"


@pytest.mark.parametrize(
    ("line", "services"),
    [
        ("default-path config", set()),
        ("bind *:80", set()),
        ("use_backend service:%[var(txn.service)]", set()),
        ("frontend port:5432 from tcp", {"db"}),
        ("bind *:5432", {"db"}),
        ("frontend port:7000 from http", set()),
        ("user a password b", {"web"}),
        ("backend service:web from http", {"web"}),
        ("no such word", {"web"}),
        ("backend service:db from tcp", {"db"}),
        ("server s1 10.0.0.3:80", set()),
    ],
)
def test_a_line_is_about_the_service_whose_section_it_is_in(line: str, services: set[str]) -> None:
    number = line_of(line)
    for where in ("/var/lib/x/candidate/haproxy.cfg", "haproxy.cfg"):
        for text in (f"parsing [{where}:{number}] : bad", f"[{where}:{number}] : 'x' : bad"):
            assert blame(CONFIG, alert(text)) == services
    assert (
        blame(CONFIG, f"HAProxy refuses the configuration: config : [haproxy.cfg:{number}] : x") == services
    )


@pytest.mark.parametrize(
    ("text", "services"),
    [
        ("Proxy 'service:web': unable to find stick-table 'nope'.", {"web"}),
        ("Proxy 'port:5432': unable to find required default_backend: 'service:gone'.", {"db"}),
        ("backend 'service:web', server 's1': unable to find required resolvers 'nope'", {"web"}),
        ("'server service:db/service:web' : could not resolve address", {"db"}),
        ("frontend port:5432: no such thing; and service:web.", {"db", "web"}),
        ("Proxy 'service:websites': unknown", set()),
        ("Proxy 'xservice:web': unknown", set()),
        ("parsing [/x/hosts.map:2] : bad", set()),
        ("parsing [/x/haproxy.cfg:99999] : bad", set()),
        ("Fatal errors found in configuration.", set()),
        ("parsing [haproxy.cfg:7] : 'use_backend' : no backend 'service:web'", {"web"}),
    ],
)
def test_without_a_line_of_a_service_it_is_about_those_that_are_named(text: str, services: set[str]) -> None:
    assert blame(CONFIG, alert(text)) == services


def test_a_line_tells_more_than_a_name() -> None:
    text = f"parsing [haproxy.cfg:{line_of('no such word')}]: unable to find 'service:db'"
    assert blame(CONFIG, alert(text)) == {"web"}


def test_every_alert_counts_and_warnings_do_not() -> None:
    message = alert("Proxy 'service:web': x") + alert("Proxy 'service:db': x")
    assert blame(CONFIG, message) == {"web", "db"}
    warning = "[WARNING]  (1) : config : parsing [haproxy.cfg:19] : about 'service:web'\n"
    assert blame(CONFIG, warning + alert("Proxy 'service:db': x") + warning) == {"db"}
    assert blame("", message) == frozenset()


def test_an_alert_may_have_several_lines() -> None:
    message = (
        "'haproxy -f port:5432' ended with status 1: [ALERT]    (1) : none\n"
        "[NOTICE]   (1) : version\n  'service:web'\n"
        "[ALERT]    (1) : config : wrong is\n  'service:db' : x\n"
        "[WARNING]  (1) : config : dubious is\n  'service:web' : x\n"
    )
    assert blame(CONFIG, message) == {"db"}
    assert blame(CONFIG, "'haproxy -c service:web' ended with status 1: " + alert("'service:db' x")) == {"db"}


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("'crt-list' : unable to load certificate from file 'b.example.pem'.", {"b.example"}),
        ("'crt-list' : No Private Key found in 'b.example.pem.key'.", {"b.example"}),
        ("x :\n  'crt-list' : error in line 3 in file 'certs.list' : 'b.example.pem': no", {"b.example"}),
        ("unable to load certificate from file 'certs.default'", {"a"}),
        ("'a.pem' and 'b.example.pem'", {"a", "b.example"}),
        ("'c.pem' and 'other/a.pem' and a.pem", set()),
    ],
)
def test_certificates_at_fault_are_found_by_their_files(said: str, names: set[str]) -> None:
    certificates = {name: Certificate(name, "", 0, 0, "") for name in ("b.example", "a")}
    assert (
        blame_certificates(alert(f"parsing [haproxy.cfg:1] : 'bind *:443' : {said}"), certificates) == names
    )
    assert blame_certificates(alert(said), {}) == frozenset()


# ---- by trying --------------------------------------------------------------------------------------


def haproxy(
    faults: Sequence[frozenset[str]],
) -> tuple[Callable[[frozenset[str]], bool], list[frozenset[str]]]:
    """Refuses whatever has all the services of any of the faults; and what it was asked."""
    asked: list[frozenset[str]] = []

    def is_accepted(left_out: frozenset[str]) -> bool:
        asked.append(left_out)
        return all(fault & left_out for fault in faults)

    return is_accepted, asked


SUSPECTS = st.integers(1, 300).map(lambda size: [f"s{number}" for number in range(size)])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[frozenset[str]]]:
    """Suspects, and faults: a service that is broken in itself, or two or three that are at odds."""
    suspects = draw(SUSPECTS)
    fault = st.frozensets(st.sampled_from(suspects), min_size=1, max_size=3)
    return suspects, draw(st.lists(fault, min_size=1, max_size=5))


@settings(deadline=None)
@given(cases())
def test_what_is_left_out_is_enough_and_needed(case: tuple[list[str], list[frozenset[str]]]) -> None:
    suspects, faults = case
    is_accepted, asked = haproxy(faults)
    culprits = bisect(suspects, is_accepted, 10_000)
    assert len(asked) <= 1 + len(culprits) * (math.ceil(math.log2(len(suspects))) + 1)
    assert len(set(asked)) == len(asked), "nothing is tried twice"
    assert is_accepted(culprits)
    assert not any(is_accepted(culprits - {each}) for each in culprits)


@settings(deadline=None)
@given(cases(), st.integers(0, 40))
def test_within_the_bound_it_is_enough_or_nothing(
    case: tuple[list[str], list[frozenset[str]]], most_checks: int
) -> None:
    suspects, faults = case
    is_accepted, asked = haproxy(faults)
    culprits = bisect(suspects, is_accepted, most_checks)
    assert len(asked) <= most_checks
    assert not culprits if most_checks == 0 else is_accepted(culprits)


@settings(deadline=None)
@given(SUSPECTS, st.randoms())
def test_a_fault_elsewhere_blames_nobody(suspects: list[str], chance: random.Random) -> None:
    is_accepted, asked = haproxy([frozenset({chance.choice(suspects)}), frozenset({"elsewhere"})])
    assert bisect(suspects, is_accepted) == frozenset()
    assert len(asked) == 1
    assert bisect([], is_accepted) == frozenset()


def test_of_two_at_odds_the_first_is_left_out() -> None:
    is_accepted, _ = haproxy([frozenset({"old", "new"})])
    assert bisect(["new", "other", "old"], is_accepted) == {"new"}


def test_ten_thousand_suspects_take_few_checks() -> None:
    suspects = [f"s{number}" for number in range(10_000)]
    is_accepted, asked = haproxy([frozenset({"s7654"})])
    assert bisect(suspects, is_accepted) == {"s7654"}
    assert len(asked) <= 16
