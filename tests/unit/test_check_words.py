"""SERVICE_CHECK_*: what the registrator is to check, and what the edges are told."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import SchemaError
from discovery.sources.checks import Check, Reading, parse_seconds, read_check
from discovery.sources.container import Binding
from discovery.sources.docker import register
from discovery.sources.reach import Reached
from tests.unit.inspected import ALL, INTERNAL, NODE, container

REACHED = Reached("192.0.2.7", 8000, "published", Binding("172.17.0.2", 80))
HTTP = Check("http", "c", "192.0.2.7", 8000, "172.17.0.2", 80, path="/health")
TCP = replace(HTTP, kind="tcp", path="")
SHELL = replace(TCP, kind="command", command=("/bin/sh", "-c", "test -e /ready"))


def read(words: dict[str, str], *, protocol: str = "tcp", commands: bool = True) -> Reading:
    return read_check(words, "c", REACHED, protocol=protocol, commands=commands)


@pytest.mark.parametrize(
    ("words", "check", "options"),
    [
        ({}, None, {}),
        ({"check_http": "/health"}, HTTP, {"check": "http:/health"}),
        (
            {"check_http": " /health?x=1&y "},
            replace(HTTP, path="/health?x=1&y"),
            {"check": "http:/health?x=1&y"},
        ),
        ({"check_http": ""}, None, {}),
        ({"check_tcp": "true"}, TCP, {"check": "tcp"}),
        ({"check_tcp": ""}, None, {}),
        # Of several the first of http, command, tcp.
        ({"check_tcp": "true", "check_http": "/health"}, HTTP, {"check": "http:/health"}),
        ({"check_tcp": "true", "check_cmd": "test -e /ready"}, SHELL, {}),
        ({"check_cmd": "test -e /ready"}, SHELL, {}),
        ({"check_cmd": '["test", "-e", "/ready"]'}, replace(SHELL, command=("test", "-e", "/ready")), {}),
        (
            {
                "check_tcp": "1",
                "check_interval": "1m30s",
                "check_timeout": "500ms",
                "check_rise": "1",
                "check_fall": "5",
            },
            replace(TCP, interval_seconds=90.0, timeout_seconds=0.5, rise=1, fall=5),
            {
                "check": "tcp",
                "check_interval": "90s",
                "check_timeout": "500ms",
                "check_rise": "1",
                "check_fall": "5",
            },
        ),
        # The edges check by themselves, so that their interval may be asked for alone.
        ({"check_interval": "5"}, None, {"check_interval": "5s"}),
    ],
)
def test_checks(words: dict[str, str], check: Check | None, options: dict[str, str]) -> None:
    reading = read(words)
    assert (reading.check, reading.options, reading.problems) == (check, options, [])


def test_defaults() -> None:
    assert (TCP.interval_seconds, TCP.timeout_seconds, TCP.rise, TCP.fall) == (10.0, 2.0, 2, 3)


@pytest.mark.parametrize(
    ("words", "check", "problem"),
    [
        ({"check_http": "health"}, None, "check_http"),
        ({"check_http": "/a b"}, None, "check_http"),
        ({"check_http": "/\r\nX: y"}, None, "check_http"),
        ({"check_http": "/ü"}, None, "check_http"),
        ({"check_http": "/" + "x" * 2000}, None, "check_http"),
        ({"check_http": "health", "check_tcp": "1"}, TCP, "check_http"),
        ({"check_cmd": "[1]"}, None, "check_cmd"),
        ({"check_cmd": "[" * 4000}, None, "check_cmd"),
        ({"check_cmd": "x" * 5000}, None, "check_cmd"),
        ({"check_cmd": "a\0b"}, None, "check_cmd"),
        ({"check_tcp": "1", "check_interval": "soon"}, TCP, "check_interval"),
        ({"check_tcp": "1", "check_interval": "10ms"}, TCP, "check_interval"),
        ({"check_tcp": "1", "check_timeout": "0"}, TCP, "check_timeout"),
        ({"check_tcp": "1", "check_rise": "0"}, TCP, "check_rise"),
        ({"check_tcp": "1", "check_fall": "1.5"}, TCP, "check_fall"),
        ({"check_https": "/x"}, None, "check_https"),
        ({"check_ttl": "30s"}, None, "check_ttl"),
        ({"check_script": "curl x"}, None, "check_script"),
    ],
)
def test_a_bad_word_costs_itself_only(words: dict[str, str], check: Check | None, problem: str) -> None:
    reading = read(words)
    assert reading.check == check
    assert [word for word, _ in reading.problems] == [problem]


def test_commands_only_where_they_are_allowed() -> None:
    reading = read({"check_cmd": "true", "check_tcp": "1"}, commands=False)
    assert reading.check == TCP
    ((word, reason),) = reading.problems
    assert word == "check_cmd"
    assert "docker.check_commands" in reason


def test_udp_is_checked_by_command_only() -> None:
    words = {"check_http": "/", "check_tcp": "1", "check_interval": "5s"}
    assert (read(words, protocol="udp").check, read(words, protocol="udp").options) == (None, {})
    found = read({**words, "check_cmd": "test -e /ready"}, protocol="udp").check
    assert found == replace(SHELL, interval_seconds=5.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("10", 10),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("1h1m1s1ms", 3661.001),
        ("24h", 86400),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "+1s", "1e3", "10 s", "10S", "1d", "0", "0s", "25h", "nan", "inf", "٣s", ".5s", "1s\n"],
)
def test_no_times(text: str) -> None:
    with pytest.raises(SchemaError):
        parse_seconds(text)


@given(
    st.dictionaries(
        st.sampled_from(["check_http", "check_cmd", "check_interval", "check_timeout", "check_rise"]),
        st.text(),
    )
)
def test_whatever_it_says_a_check_is_usable(words: dict[str, str]) -> None:
    reading = read(words)
    for _, reason in reading.problems:
        assert reason.isprintable()
    for text in reading.options.values():
        assert text.isprintable()
        assert text.isascii()
    if reading.check is not None:
        assert reading.check.interval_seconds >= 0.1
        assert reading.check.timeout_seconds >= 0.001
        assert 1 <= reading.check.rise <= 100


# ---- in its place -----------------------------------------------------------------------------------


def test_the_decision_carries_it() -> None:
    first, second = register(container("checks"), ALL, NODE).decisions
    own = container("checks").networks["bridge"][0]
    common = Check(
        "http",
        container("checks").id,
        "192.0.2.7",
        8099,
        own,
        80,
        path="/health",
        interval_seconds=5.0,
        timeout_seconds=0.5,
    )
    assert first.check == common
    assert second.check == replace(common, kind="tcp", path="", port=8100, own_port=81)


def test_a_bad_word_is_reported_with_its_name() -> None:
    outcome = register(container("checks", "SERVICE_CHECK_RISE=many"), ALL, NODE)
    assert {each.subject for each in outcome.problems} == {
        "container checks port 80, SERVICE_CHECK_RISE",
        "container checks port 81, SERVICE_CHECK_RISE",
    }
    assert len(outcome.registrations) == 2


def test_a_container_at_its_own_address_is_checked_there() -> None:
    decision = register(container("checks"), ALL, INTERNAL).decisions[0]
    assert decision.check is not None
    assert (decision.check.host, decision.check.own_host) == (container("checks").networks["bridge"][0], None)
