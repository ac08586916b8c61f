"""The services at fault, by what real HAProxys say of a configuration of two hundred."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from discovery.haproxy.blame import bisect, blame
from tests.lab.haproxy import VERSIONS, haproxy_binary

NAMES = tuple(f"service-{number}" for number in range(200))
HEAD = """\
global
    default-path config
    maxconn 100
defaults http
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend edge from http
    bind 127.0.0.1:18080
    use_backend service:%[req.hdr(x)]
"""


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


def config_of(more: Mapping[str, str], left_out: frozenset[str] = frozenset(), head: str = HEAD) -> str:
    """A listener and a backend for every name, with more lines in the backends of some."""
    return head + "".join(
        f"frontend port:{10000 + number} from http\n    bind 127.0.0.1:{10000 + number}\n"
        f"    default_backend service:{name}\n"
        f"backend service:{name} from http\n    server s1 127.0.0.1:80\n" + more.get(name, "")
        for number, name in enumerate(NAMES)
        if name not in left_out
    )


class Checker:
    """Has HAProxy check a configuration, and counts how often."""

    def __init__(self, binary: str, directory: Path, more: Mapping[str, str], head: str = HEAD) -> None:
        self.count = 0
        self._head = head
        self._more = more
        self._config = directory / "haproxy.cfg"
        self._command = [binary, "-c", "-f", str(self._config)]

    def refusal(self, left_out: frozenset[str] = frozenset()) -> str:
        """What it says against the configuration; nothing when it takes it."""
        self.count += 1
        self._config.write_text(config_of(self._more, left_out, self._head))
        run = subprocess.run(self._command, capture_output=True, text=True, timeout=60, check=False)
        return run.stderr if run.returncode else ""

    def accepts(self, left_out: frozenset[str]) -> bool:
        return not self.refusal(left_out)


@pytest.mark.parametrize(
    "line",
    [
        "no-such-word",
        "server s1 127.0.0.1:81",
        "server s2 127.0.0.1:99999",
        "server s2 no.such.host.invalid:80",
        "server s2 127.0.0.1:80 ssl verify required",
        "http-request set-header X %[nonsense]",
        "balance nonsense",
        'http-request set-header X "open',
        "backend service:service-77 from http",
        "http-request auth unless { http_auth(nobody) }",
        # These are found out after the whole was read, and told without a line.
        "stick on src table nowhere",
        "use-server nobody if TRUE",
        "server s2 127.0.0.1:80 resolvers nobody init-addr none",
    ],
)
def test_one_bad_line_is_that_services(line: str, binary: str, tmp_path: Path) -> None:
    checker = Checker(binary, tmp_path, {"service-77": f"    {line}\n"})
    message = checker.refusal()
    assert blame(config_of({"service-77": f"    {line}\n"}), message) == {"service-77"}, message
    assert checker.accepts(frozenset({"service-77"}))


def test_several_are_found_at_once(binary: str, tmp_path: Path) -> None:
    more = dict.fromkeys(("service-3", "service-99"), "    nonsense\n")
    checker = Checker(binary, tmp_path, more)
    assert blame(config_of(more), checker.refusal()) == {"service-3", "service-99"}


def test_two_that_are_at_odds_are_found_by_trying(binary: str, tmp_path: Path) -> None:
    """Two further backends of one name, which a template has put there."""
    more = dict.fromkeys(("service-20", "service-120"), "backend people from http\n")
    checker = Checker(binary, tmp_path, more)
    assert blame(config_of(more), checker.refusal()) == frozenset()
    assert bisect(NAMES[::-1], checker.accepts) == {"service-120"}
    assert checker.count <= 2 + 1 + 9


def test_a_fault_that_names_nobody_is_found_by_trying(binary: str, tmp_path: Path) -> None:
    """It is in a section of its own, which a template has put there."""
    more = {name: f"listen {name} from http\n    nonsense\n" for name in ("service-5", "service-150")}
    checker = Checker(binary, tmp_path, more)
    assert blame(config_of(more), checker.refusal()) == frozenset()
    assert bisect(NAMES, checker.accepts) == set(more)


def test_a_fault_elsewhere_is_nobodys(binary: str, tmp_path: Path) -> None:
    head = HEAD.replace("maxconn 100", "nonsense")
    checker = Checker(binary, tmp_path, {}, head)
    assert blame(config_of({}, head=head), checker.refusal()) == frozenset()
    assert bisect(NAMES, checker.accepts) == frozenset()
    assert checker.count == 2
