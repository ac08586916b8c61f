"""Certificates in a running HAProxy: offered by name, renewed, added and removed without a reload."""

import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery.errors import ApplyError
from discovery.haproxy.blame import blame_certificates
from discovery.haproxy.certificate_commands import (
    COMMAND_BYTES,
    certificate_commands,
    fingerprint_shown,
    run_certificate_commands,
)
from discovery.haproxy.certificates import (
    DEFAULT,
    Certificate,
    certificate_files,
    parse_certificate,
    read_certificates,
)
from tests.lab.bare import Bare, bare
from tests.lab.haproxy import TEMPLATES, VERSIONS, free_port, haproxy_binary
from tests.lab.tls import Pem, client, look, make

Set = Mapping[str, Certificate]


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


def floor() -> str:
    """The lines of the packaged configuration that say what TLS is spoken."""
    lines = (TEMPLATES / "global.cfg.j2").read_text().splitlines()
    return "\n".join(line for line in lines if line.strip().startswith("ssl-default-bind"))


def write(directory: Path, certificates: Set) -> None:
    for name, text in certificate_files(certificates).items():
        (directory / name).write_text(text)


@contextmanager
def serving(binary: str, directory: Path, certificates: Set) -> Iterator[tuple[Bare, int]]:
    """HAProxy on these certificates, and its port."""
    port = free_port()
    write(directory, certificates)
    sections = (
        f"frontend tls\n    bind 127.0.0.1:{port} ssl crt-list certs.list alpn h2,http/1.1\n"
        '    http-request return status 200 content-type text/plain string "hello"\n'
    )
    with bare(binary, directory, sections, f"    default-path config\n{floor()}") as haproxy:
        yield haproxy, port


def by_name(**pems: Pem) -> dict[str, Certificate]:
    return {name: parse_certificate(name, pem.whole) for name, pem in sorted(pems.items())}


def change(haproxy: Bare, running: Set, wanted: Set) -> None:
    commands = certificate_commands(running, wanted)
    assert commands is not None
    run_certificate_commands(commands, haproxy.ask_plain)


@pytest.fixture(scope="module")
def a() -> Pem:
    return make("a.example")


@pytest.fixture(scope="module")
def b() -> Pem:
    return make("b.example", "*.b.example")


# ---- what is offered --------------------------------------------------------------------------------


def test_the_name_decides_and_without_one_the_first_by_name(
    binary: str, a: Pem, b: Pem, tmp_path: Path
) -> None:
    with serving(binary, tmp_path, by_name(b=b, a=a)) as (_, port):
        names = ("a.example", "b.example", "x.b.example", "unknown.example", None)
        assert [look(port, name).fingerprint for name in names] == [
            a.fingerprint, b.fingerprint, b.fingerprint, a.fingerprint, a.fingerprint
        ]  # fmt: skip
        assert look(port, "a.example").alpn == "h2"


def test_one_named_default_is_the_default(binary: str, a: Pem, b: Pem, tmp_path: Path) -> None:
    with serving(binary, tmp_path, by_name(a=a, default=b)) as (_, port):
        assert look(port, None).fingerprint == b.fingerprint


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_the_floor(binary: str, a: Pem, tmp_path: Path) -> None:
    rsa = make("rsa.example", kind="rsa:2048")
    with serving(binary, tmp_path, by_name(a=a, rsa=rsa)) as (_, port):
        assert look(port, "a.example").version == "TLSv1.3"
        for name in ("a.example", "rsa.example"):
            assert look(port, name, most=ssl.TLSVersion.TLSv1_2).cipher.startswith("ECDHE-")
            for most, ciphers in (
                # Even to a client that would.
                (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
                (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256:AES128-SHA256"),
                (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"),
                (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256"),
                (ssl.TLSVersion.TLSv1_2, "DHE-RSA-AES128-GCM-SHA256"),
            ):
                with pytest.raises((ssl.SSLError, ConnectionResetError)):
                    look(port, name, most=most, ciphers=ciphers)


@pytest.mark.parametrize("kind", ["ec", "rsa:2048", "ed25519"])
def test_every_kind_that_we_take_haproxy_takes(kind: str, binary: str, a: Pem, tmp_path: Path) -> None:
    pem = make("k.example", kind=kind)
    with serving(binary, tmp_path, by_name(k=pem)) as (haproxy, port):
        assert look(port, "k.example").fingerprint == pem.fingerprint
        renewed = make("k.example", kind=kind)
        change(haproxy, by_name(k=pem), by_name(k=renewed))
        assert look(port, "k.example").fingerprint == renewed.fingerprint


# ---- changes ----------------------------------------------------------------------------------------


def request(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while b"hello" not in answer:
        chunk = connection.recv(4096)
        assert chunk, "the connection was closed"
        answer += chunk
    return answer


def test_renewed_added_and_removed_without_a_reload(binary: str, a: Pem, b: Pem, tmp_path: Path) -> None:
    first = by_name(a=a, b=b)
    with serving(binary, tmp_path, first) as (haproxy, port):
        worker = haproxy.worker
        connections = [client(port, name, alpn="http/1.1") for name in ("a.example", "b.example", None)]
        renewed, added = make("b.example"), make("c.example")
        second = by_name(a=a, b=renewed, c=added)
        change(haproxy, first, second)
        assert look(port, "b.example").fingerprint == renewed.fingerprint
        assert look(port, "c.example").fingerprint == added.fingerprint
        assert look(port, "a.example").fingerprint == look(port, None).fingerprint == a.fingerprint
        for each in second.values():
            assert fingerprint_shown(haproxy.ask(f"show ssl cert {each.file}")) == each.fingerprint
        # Away with the one that was the default, and with one that connections were made with.
        third = by_name(c=added)
        change(haproxy, second, third)
        for name in ("a.example", "b.example", "c.example", None):
            assert look(port, name).fingerprint == added.fingerprint
        assert "a.pem" not in haproxy.ask("show ssl cert")
        assert fingerprint_shown(haproxy.ask(f"show ssl cert {DEFAULT}")) == added.fingerprint
        # And back again, under the same name.
        change(haproxy, third, first)
        assert look(port, "a.example").fingerprint == look(port, None).fingerprint == a.fingerprint
        assert haproxy.worker == worker
        for connection in connections:
            with connection:
                assert request(connection).startswith(b"HTTP/1.1 200")


def test_after_a_reload_it_is_the_same_and_goes_on(binary: str, a: Pem, b: Pem, tmp_path: Path) -> None:
    first, second = by_name(a=a), by_name(a=a, b=b)
    with serving(binary, tmp_path, first) as (haproxy, port):
        change(haproxy, first, second)
        write(tmp_path, second)
        haproxy.reload()
        assert look(port, "b.example").fingerprint == b.fingerprint
        change(haproxy, second, by_name(b=b))
        assert look(port, None).fingerprint == b.fingerprint


def test_a_broken_file_keeps_nothing_else_from_being_renewed(
    binary: str, a: Pem, b: Pem, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.pem").write_text(a.whole)
    (source / "b.crt").write_text(b.chain)
    (source / "b.key").write_text(b.key)
    (source / "never.pem").write_text("nonsense")
    before = read_certificates(source, time.time(), {}).usable
    with serving(binary, tmp_path, before) as (haproxy, port):
        renewed = make("a.example")
        (source / "a.pem").write_text(renewed.whole)
        # Half of a renewal: the key comes later.
        other = make("b.example")
        (source / "b.crt").write_text(other.chain)
        found = read_certificates(source, time.time(), before)
        assert [problem.subject for problem in found.problems] == ["b.crt", "never.pem"]
        change(haproxy, before, found.usable)
        assert look(port, "a.example").fingerprint == renewed.fingerprint
        assert look(port, "b.example").fingerprint == b.fingerprint
        (source / "b.key").write_text(other.key)
        change(haproxy, found.usable, read_certificates(source, time.time(), found.usable).usable)
        assert look(port, "b.example").fingerprint == other.fingerprint


# ---- failures ---------------------------------------------------------------------------------------


def test_what_haproxy_refuses_leaves_all_as_it_was(binary: str, a: Pem, b: Pem, tmp_path: Path) -> None:
    first = by_name(a=a, b=b)
    with serving(binary, tmp_path, first) as (haproxy, port):
        (good,) = by_name(b=make("b.example")).values()
        bad = Certificate("b", b.chain + a.key, 0, 0, "")
        for text in (bad, Certificate("c", "nonsense\n", 0, 0, "")):
            with pytest.raises(ApplyError, match="ssl cert"):
                change(haproxy, first, {**first, text.name: text})
        assert look(port, "b.example").fingerprint == b.fingerprint
        assert "No ongoing" in haproxy.ask("abort ssl cert b.pem")
        change(haproxy, first, {**first, "b": good})
        assert look(port, "b.example").fingerprint == good.fingerprint
        # What was begun of a new one is in nobody's way.
        (new,) = by_name(c=make("c.example")).values()
        change(haproxy, first, {**first, "c": new})
        assert look(port, "c.example").fingerprint == new.fingerprint


@pytest.mark.parametrize("bad", ["a", "b"])
def test_one_that_haproxy_alone_refuses_is_named(
    bad: str, binary: str, a: Pem, b: Pem, tmp_path: Path
) -> None:
    """As its OpenSSL may be stricter than ours: here it is a key that is no one's."""
    certificates = by_name(a=a, b=b)
    certificates[bad] = Certificate(bad, make("x.example").chain + a.key, 0, 0, "")
    write(tmp_path, certificates)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    default-path config\ndefaults\n    mode http\n    timeout client 1s\n"
        "frontend tls\n    bind 127.0.0.1:1443 ssl crt-list certs.list\n"
    )
    command = [binary, "-c", "-f", str(config)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode != 0
    assert blame_certificates(run.stderr, certificates) == {bad}


def test_a_killed_agents_transaction_is_taken_off(binary: str, a: Pem, b: Pem, tmp_path: Path) -> None:
    first = by_name(a=a, b=b)
    with serving(binary, tmp_path, first) as (haproxy, port):
        assert "created" in haproxy.ask_plain(f"set ssl cert a.pem <<\n{b.whole}")
        renewed = by_name(a=a, b=make("b.example"))
        change(haproxy, first, renewed)
        assert look(port, "b.example").fingerprint == renewed["b"].fingerprint
        assert look(port, "a.example").fingerprint == a.fingerprint


def test_the_largest_command_fits(binary: str, a: Pem, tmp_path: Path) -> None:
    """A byte more than the buffer holds would end 2.6; this is a little less."""
    first = by_name(a=a)
    with serving(binary, tmp_path, first) as (haproxy, port):
        worker = haproxy.worker
        chain = make("a.example")
        count = (COMMAND_BYTES - 300) // len(chain.chain)
        large = {"a": parse_certificate("a", chain.chain * count + chain.key)}
        assert len(large["a"].text) > COMMAND_BYTES - 1000
        change(haproxy, first, large)
        assert look(port, "a.example").fingerprint == chain.fingerprint
        assert haproxy.worker == worker
