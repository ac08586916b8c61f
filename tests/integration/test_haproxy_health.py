"""What real HAProxys say of servers in every state, as the mass-loss guard is told it."""

import socket
from pathlib import Path

import pytest

from discovery.haproxy.state import ServerState, parse_states
from tests.lab.bare import bare
from tests.lab.haproxy import VERSIONS, echo, free_port, haproxy_binary, until

SECTIONS = """
frontend site
    bind 127.0.0.1:{front}
    use_backend %[str(web)]
backend web
    default-server inter 50 fall 2 rise 1
    server lives 127.0.0.1:{port} check
    server dead 127.0.0.1:1 check
    server plain 127.0.0.1:1
    server drains 127.0.0.1:{port} check
    server left 127.0.0.1:1 check
    server off 127.0.0.1:1 check
backend dynamic
    balance random
"""
EXPECTED = {
    "web/lives": "lives",
    "web/dead": "failed",
    "web/plain": "unchecked",
    "web/off": "maintenance",
    "web/drains": "lives",
    "web/left": "failed",
    "dynamic/new": "unchecked",
    "dynamic/checked": "failed",
}


def verdict(state: ServerState) -> str:
    if state.in_maintenance:
        return "maintenance"
    # Also of one whose checks were switched off since: it takes no traffic.
    return "failed" if not state.is_up else "lives" if state.is_checked else "unchecked"


@pytest.mark.parametrize("version", VERSIONS)
def test_verdicts_are_what_the_checks_found(version: str, tmp_path: Path) -> None:
    with echo() as port:
        sections = SECTIONS.format(front=free_port(), port=port)
        with bare(haproxy_binary(version), tmp_path, sections) as haproxy:

            def verdicts() -> dict[str, str]:
                states = parse_states(haproxy.ask("show servers state"))
                return {
                    f"{section}/{name}": verdict(state)
                    for section, servers in states.items()
                    for name, state in servers.items()
                }

            until(lambda: verdicts()["web/left"] == "failed", "the checks failed")
            for command in (
                "disable health web/left",
                "set server web/off state maint",
                "set server web/drains state drain",
                "add server dynamic/new 127.0.0.1:1 check inter 50 fall 2",
                "enable server dynamic/new",
                "add server dynamic/checked 127.0.0.1:1 check inter 50 fall 2",
                "enable health dynamic/checked",
                "enable server dynamic/checked",
            ):
                haproxy.ask(command)
            until(lambda: verdicts() == EXPECTED, "every state is read as it is")


def test_server_whose_first_check_is_not_through_lives(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sections = f"""
frontend site
    bind 127.0.0.1:{free_port()}
    default_backend web
backend web
    option httpchk
    server s1 127.0.0.1:{silent.getsockname()[1]} check inter 60s
"""
        with bare(haproxy_binary("2.6"), tmp_path, sections) as haproxy:
            states = parse_states(haproxy.ask("show servers state"))
            assert verdict(states["web"]["s1"]) == "lives"
