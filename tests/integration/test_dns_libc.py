"""What programs see: names looked up by glibc and by musl, with a resolv.conf of their own."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from tests.lab.dns import EDGE, Upstream, answer, dnsmasq, serving, silent
from tests.lab.need import need

LISTEN = ("127.0.53.10", 53)
MUSL = Path("/lib/ld-musl-x86_64.so.1")
CRT1 = Path("/usr/lib/x86_64-linux-gnu/crt1.o")
# Well below the first time-out of either library: nothing was asked twice.
AT_ONCE_SECONDS = 2.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a resolv.conf of one's own takes root")


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that looks a name up with musl: linked straight to its library, no musl compiler needed."""
    if not (MUSL.exists() and CRT1.exists()):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("musl or libc6-dev is not installed")
    program = tmp_path_factory.mktemp("musl") / "lookup"
    source = Path(__file__).parent.parent / "lab" / "lookup.c"
    flags = [
        "-nostdlib",
        "-no-pie",
        "-fno-stack-protector",
        "-U_FORTIFY_SOURCE",
        f"-Wl,-dynamic-linker,{MUSL}",
    ]
    subprocess.run([need("gcc"), *flags, "-o", program, CRT1, source, MUSL], check=True, timeout=60)
    return program


@pytest.fixture(params=["glibc", "musl"])
def lookup(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "musl":
        return [str(request.getfixturevalue("musl"))]
    return [need("getent"), "ahosts"]


@contextlib.contextmanager
def dns(*upstreams: Address, answer: tuple[str, ...] = (EDGE,)) -> Iterator[None]:
    settings = DnsSettings((LISTEN,), answer, upstreams=upstreams)
    with serving(DnsServer(settings)):
        yield


def resolve(lookup: list[str], name: str, directory: Path, options: str = "") -> tuple[set[str], float]:
    """The addresses found, and the seconds it took, by a program that sees a resolv.conf of its own."""
    resolv_conf, nsswitch = directory / "resolv.conf", directory / "nsswitch.conf"
    resolv_conf.write_text(f"nameserver {LISTEN[0]}\n{options}\n")
    nsswitch.write_text("hosts: dns\n")
    mounts = f"mount --bind {resolv_conf} /etc/resolv.conf"
    if Path("/etc/nsswitch.conf").exists():
        mounts += f" && mount --bind {nsswitch} /etc/nsswitch.conf"
    command = [need("unshare"), "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *lookup, name]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    seconds = time.monotonic() - began
    assert "mount" not in done.stderr, done.stderr
    return (
        {line.split()[0] for line in done.stdout.splitlines()} if done.returncode == 0 else set()
    ), seconds


def test_a_service_is_found_at_once_without_any_upstream(lookup: list[str], tmp_path: Path) -> None:
    with dns():
        for name in ("web.local", "idle.local"):
            addresses, seconds = resolve(lookup, name, tmp_path)
            assert addresses == {EDGE}
            assert seconds < AT_ONCE_SECONDS


def test_a_service_is_found_at_once_with_a_dead_upstream(lookup: list[str], tmp_path: Path) -> None:
    with Upstream(silent) as dead, dns(dead.address):
        addresses, seconds = resolve(lookup, "web.local", tmp_path)
        assert addresses == {EDGE}
        assert seconds < AT_ONCE_SECONDS
        assert dead.asked == []


def test_an_unknown_name_is_denied_at_once(lookup: list[str], tmp_path: Path) -> None:
    with Upstream(silent) as dead, dns(dead.address):
        addresses, seconds = resolve(lookup, "nosuch.local", tmp_path)
        assert addresses == set()
        assert seconds < AT_ONCE_SECONDS


def test_both_addresses_of_an_edge_with_ipv6(lookup: list[str], tmp_path: Path) -> None:
    with dns(answer=(EDGE, "fd00::42")):
        assert resolve(lookup, "web.local", tmp_path)[0] == {EDGE, "fd00::42"}


def test_a_search_list_goes_past_the_zone(lookup: list[str], tmp_path: Path) -> None:
    with (
        dnsmasq("--local=/example.org/", "--host-record=web.example.org,192.0.2.5") as upstream,
        dns(upstream),
    ):
        search = "search local example.org\noptions ndots:2"
        assert resolve(lookup, "web", tmp_path, search)[0] == {EDGE}
        assert resolve(lookup, "web.example.org", tmp_path, search)[0] == {"192.0.2.5"}


def test_a_forwarded_name(lookup: list[str], tmp_path: Path) -> None:
    with Upstream(lambda message: [answer(message)]) as upstream, dns(upstream.address):
        # It answers AAAA questions with A records, which both libraries pass over.
        addresses, seconds = resolve(lookup, "example.org", tmp_path, "options edns0")
        assert addresses == {"192.0.2.1"}
        assert seconds < AT_ONCE_SECONDS
