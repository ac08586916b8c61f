"""What HAProxy itself says of the golden configurations, and of certificates."""

import http.client
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from discovery.errors import ConfigError
from discovery.haproxy.program import check, haproxy_version
from tests.lab.haproxy import VERSIONS, echo, free_port, haproxy_binary, running, service, settings
from tests.lab.need import need

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "haproxy"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate of the test's own for ``*.local``, and its key."""
    directory = tmp_path_factory.mktemp("certs")
    pem = directory / "local.pem"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=*.local", "-addext", "subjectAltName=DNS:*.local"]
    subprocess.run(
        [*command, "-keyout", pem, "-out", directory.parent / "c"], check=True, capture_output=True
    )
    with pem.open("a") as file:
        file.write((directory.parent / "c").read_text())
    return directory


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", [path.name for path in GOLDEN.iterdir()])
def test_golden_configurations_are_accepted(
    case: str, version: str, certificates: Path, tmp_path: Path
) -> None:
    shutil.copytree(GOLDEN / case, tmp_path, dirs_exist_ok=True)
    for name in ("local.pem", "certs.default"):
        if (tmp_path / name).exists():
            (tmp_path / name).write_text((certificates / "local.pem").read_text())
    check(haproxy_version(haproxy_binary(version)), tmp_path / "haproxy.cfg", 60)


@pytest.mark.parametrize("version", VERSIONS)
def test_https_is_served_and_told(version: str, certificates: Path, tmp_path: Path) -> None:
    with echo() as port:
        https = free_port()
        of = settings(tmp_path, haproxy_binary(version), https=(f"127.0.0.1:{https}",), certs=certificates)
        with running(of, service("web", port)):
            context = ssl.create_default_context(cafile=str(certificates / "local.pem"))
            context.check_hostname = False
            connection = http.client.HTTPSConnection("127.0.0.1", https, context=context, timeout=30)
            connection.request("GET", "/", headers={"Host": "web.local"})
            assert b'"x-forwarded-proto": "https"' in connection.getresponse().read()
            connection.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo HAProxy version 2.4.22 2023/01/01", "is version 2.4.22 .2.6 or later is needed"),
        ("echo Busybox", "is no HAProxy"),
        ("exit 3", "ended with status 3"),
    ],
)
def test_an_unusable_program_names_the_setting(script: str, reason: str, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=rf"proxy\.haproxy: .*{reason}"):
        haproxy_version(str(program))


def test_no_program_names_the_setting_and_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"proxy\.haproxy: there is no program .* \(install"):
        haproxy_version("no-such-haproxy")
