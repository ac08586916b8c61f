"""What real HAProxys say of servers in every state, as the mass-loss guard is told it."""

import socket
from pathlib import Path

import pytest

from discovery.errors import ApplyError
from discovery.haproxy.health import read_health
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
    server off 127.0.0.1:1 check disabled
    server drains 127.0.0.1:{port} check
    server left 127.0.0.1:1 check
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


@pytest.mark.parametrize("version", VERSIONS)
def test_verdicts_are_what_the_checks_found(version: str, tmp_path: Path) -> None:
    with echo() as port:
        sections = SECTIONS.format(front=free_port(), port=port)
        with bare(haproxy_binary(version), tmp_path, sections) as haproxy:

            def verdicts() -> dict[str, str]:
                health = read_health(haproxy.ask("show servers state"))
                return {f"{each.backend}/{each.server}": each.verdict for each in health}

            until(lambda: verdicts()["web/left"] == "failed", "the checks failed")
            for command in (
                "disable health web/left",
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
            health = read_health(haproxy.ask("show servers state"))
            assert [each.verdict for each in health] == ["lives"]


@pytest.mark.parametrize("text", ["", "Unknown command.", "1\n# be_id be_name srv_id srv_name\n"])
def test_what_is_no_state_says_nothing(text: str) -> None:
    with pytest.raises(ApplyError):
        list(read_health(text))
