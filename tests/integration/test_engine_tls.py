"""An engine over TLS: a real dockerd with --tlsverify, and what is said when the two are strangers."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from discovery.errors import ConfigError, SourceError
from discovery.sources.bridge import bridge_addresses
from discovery.sources.docker import Rules
from discovery.sources.docker_engine import ping
from discovery.sources.docker_source import DockerSource
from discovery.sources.engine_client import EngineAddress, engine_address
from tests.lab import agent
from tests.lab.certificates import Authority
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import free_ports
from tests.lab.wait import until


@dataclass(frozen=True)
class Remote:
    """An engine behind TLS, and the address that works."""

    engine: DockerEngine
    address: EngineAddress


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    authority = Authority(tmp_path_factory.mktemp("tls") / "ours")
    certificate, key = authority.sign("engine", "IP:127.0.0.1")
    ours = authority.sign("registrator")
    (port,) = free_ports(1)
    flags = [f"--tlscacert={authority.ca_file}", f"--tlscert={certificate}", f"--tlskey={key}"]
    flags += ["--tlsverify", f"--host=tcp://127.0.0.1:{port}"]
    with DockerEngine(extra=flags) as engine:
        address = EngineAddress(f"tcp://127.0.0.1:{port}", True, authority.ca_file, *ours)
        yield Remote(engine, address)


def test_containers_of_a_remote_engine(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.engine.run("web", ports={80: 8000})
    # Set on many machines, for other programs' sake.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    with closing(DockerSource(remote.address, Rules("n1", "192.0.2.7"))) as source:
        (found,) = source.registrations()
        assert found.instance.address == "192.0.2.7:8000"
        remote.engine.client.pause("web")
        until(lambda: source.wait(1) and not source.registrations(), "its events come through TLS")
    assert bridge_addresses(remote.address)[0] == remote.engine.gateway


@pytest.mark.parametrize(
    ("case", "setting", "reason"),
    [
        ("other authority", "docker.ca_file", "not vouched for by .*other/ca.pem"),
        ("system's authorities", "docker.ca_file", "not vouched for by an authority that this system trusts"),
        ("other host", "docker.url", "not for that host"),
        ("no certificate of ours", "docker.cert_file", "wants a certificate of ours"),
        ("our certificate by another", "docker.cert_file", "refuses"),
        ("no TLS", "docker.url", "wants TLS"),
    ],
)
def test_who_is_not_known_is_named(
    remote: Remote, tmp_path: Path, case: str, setting: str, reason: str
) -> None:
    good = remote.address
    other = Authority(tmp_path / "other")
    address = {
        "other authority": lambda: replace(good, ca_file=other.ca_file),
        "system's authorities": lambda: replace(good, ca_file=None),
        "other host": lambda: replace(good, url=good.url.replace("127.0.0.1", "localhost")),
        "no certificate of ours": lambda: replace(good, cert_file=None, key_file=None),
        "our certificate by another": lambda: EngineAddress(
            good.url, True, good.ca_file, *other.sign("registrator")
        ),
        "no TLS": lambda: EngineAddress(good.url),
    }[case]()
    with pytest.raises(SourceError, match=f"^{setting}: .*{reason}"):
        ping(address)


@pytest.fixture
def plain() -> Iterator[str]:
    """Something that speaks HTTP without TLS."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_engine_without_tls_is_named(tmp_path: Path, plain: str) -> None:
    with pytest.raises(SourceError, match=r"^docker\.url: .* does not speak TLS"):
        ping(EngineAddress(plain, True, Authority(tmp_path / "ours").ca_file))


# ---- settings and Docker's own variables ------------------------------------------------------------


def test_docker_s_own_variables(remote: Remote, tmp_path: Path) -> None:
    good = remote.address
    assert good.ca_file and good.cert_file and good.key_file
    for path, name in ((good.ca_file, "ca"), (good.cert_file, "cert"), (good.key_file, "key")):
        (tmp_path / f"{name}.pem").write_bytes(path.read_bytes())
    environment = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    address = engine_address(good.url, None, None, None, environment)
    ping(address)
    mine = engine_address(good.url, good.ca_file, None, None, environment)
    assert mine == replace(address, ca_file=good.ca_file)
    assert engine_address("unix:///run/docker.sock", None, None, None, environment) == EngineAddress(
        "unix:///run/docker.sock"
    )


@pytest.mark.parametrize(
    ("files", "setting"),
    [
        (("nowhere.pem", None, None), "docker.ca_file"),
        ((None, "there.pem", None), "docker.key_file"),
        ((None, None, "there.pem"), "docker.cert_file"),
        ((None, "nowhere.pem", "there.pem"), "docker.cert_file"),
    ],
)
def test_files_that_do_not_do(tmp_path: Path, files: tuple[str | None, ...], setting: str) -> None:
    (tmp_path / "there.pem").touch()
    given = [tmp_path / name if name else None for name in files]
    with pytest.raises(ConfigError) as raised:
        engine_address("tcp://127.0.0.1:2376", *given, environ={})
    assert raised.value.setting == setting


def test_the_command_names_flag_and_variable(remote: Remote, tmp_path: Path) -> None:
    done = agent.run(
        "registrator", f"--store=file://{tmp_path}", f"--docker={remote.address.url}", "--docker-ca-file=/no"
    )
    assert done.returncode == 2
    assert "docker.ca_file: there is no file /no" in done.stderr
    assert "[--docker-ca-file, DISCOVERY_DOCKER_CA_FILE]" in done.stderr
