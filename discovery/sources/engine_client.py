"""A connection to a Docker engine: over a socket of this machine, over TCP, over TLS; and why there is none.

The variables of Docker's own client count where our settings say nothing: ``DOCKER_TLS_VERIFY`` turns TLS on,
``DOCKER_CERT_PATH`` is where ``ca.pem``, ``cert.pem`` and ``key.pem`` are. An engine's certificate is always
verified: whoever poses as an engine says where requests go.
"""

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
import urllib3
from docker.tls import TLSConfig

from discovery.errors import ConfigError, SourceError

FAILURES = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)
"""What a call of the library raises when there is no proper answer."""

_OTHER_HOST = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine is, and by which PEM files the two know each other.

    With ``tls`` its certificate must be signed by ``ca_file``, or, without one, by an authority that the
    system trusts; ``cert_file`` and ``key_file`` are ours. ``url`` is fit for display.
    """

    url: str
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def engine_address(
    url: str,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    environ: Mapping[str, str],
) -> EngineAddress:
    """The address that settings and environment describe. Raises ConfigError for files that do not do."""
    if url.startswith(("unix://", "/", "npipe://", "ssh://")):
        return EngineAddress(url)
    given = {"docker.ca_file": ca_file, "docker.cert_file": cert_file, "docker.key_file": key_file}
    tls = url.startswith("https://") or any(given.values())
    if environ.get("DOCKER_TLS_VERIFY"):
        tls = True
        directory = Path(environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
        for setting, name in zip(given, ("ca.pem", "cert.pem", "key.pem"), strict=True):
            if given[setting] is None and (directory / name).exists():
                given[setting] = directory / name
    for setting, path in given.items():
        if path is not None and not path.is_file():
            raise ConfigError(setting, f"there is no file {path}")
    ca_file, cert_file, key_file = given.values()
    if (cert_file is None) != (key_file is None):
        setting = "docker.cert_file" if cert_file is None else "docker.key_file"
        raise ConfigError(setting, "is missing", "a client certificate needs both files")
    return EngineAddress(url, tls, ca_file, cert_file, key_file)


def open_client(address: EngineAddress, timeout_seconds: float) -> docker.APIClient:
    """A client of the engine, whose version it has asked; SourceError when there is none.

    ``timeout_seconds`` bounds each call.
    """
    try:
        return _Client(
            base_url=address.url,
            # Negotiated anew at each connection, for the engine may have been replaced by another version.
            version="auto",
            timeout=timeout_seconds,  # type: ignore[arg-type]  # it takes fractions
            tls=_tls(address),
        )
    except FAILURES as error:
        raise unreachable(address, error) from error


class _Client(docker.APIClient):
    """The library's client, whose authority is ours even where REQUESTS_CA_BUNDLE names others."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """See requests.Session, which lets that variable win over the session's own authority."""
        ours = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, ours, cert)


def _tls(address: EngineAddress) -> TLSConfig | bool:
    if not address.tls:
        return False
    ours = (str(address.cert_file), str(address.key_file)) if address.cert_file else None
    authority = str(address.ca_file) if address.ca_file else None
    return TLSConfig(client_cert=ours, ca_cert=authority, verify=True)


def unreachable(address: EngineAddress, error: BaseException) -> SourceError:
    """What a failed call means: the setting at fault, the reason, the mend."""
    setting, reason, mend = _diagnosis(address, error)
    return SourceError(f"{setting}: {reason} ({mend})")


def _diagnosis(address: EngineAddress, error: BaseException) -> tuple[str, str, str]:
    url = address.url
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            return _distrusted(address, each)
    if address.tls and any(isinstance(each, ssl.SSLError) for each in chain):
        return _refused_handshake(address, chain)
    if "HTTP request to an HTTPS server" in str(error):
        mend = "give the authority of its certificate by docker.ca_file, or set DOCKER_TLS_VERIFY"
        return "docker.url", f"the engine at {url} wants TLS", mend
    for each in chain:
        response = getattr(each, "response", None)
        if isinstance(response, requests.Response) and response.status_code == requests.codes.forbidden:
            asked = response.request.path_url.partition("?")[0]
            mend = "a socket proxy must allow GET of /events, /containers, /networks and /version"
            return "docker.url", f"the engine at {url}, or a proxy before it, forbids GET {asked}", mend
    mend = "start it, or name its socket by --docker"
    return "docker.url", f"no Docker engine answers at {url}: {reason_of(error)}", mend


def _distrusted(address: EngineAddress, error: ssl.SSLCertVerificationError) -> tuple[str, str, str]:
    said = error.verify_message
    if error.verify_code in _OTHER_HOST:
        reason = f"the certificate of the engine at {address.url} is not for that host: {said}"
        return "docker.url", reason, "name the engine as its certificate does"
    authority = address.ca_file or "an authority that this system trusts"
    reason = f"the certificate of the engine at {address.url} is not vouched for by {authority}: {said}"
    return "docker.ca_file", reason, "give the authority that signed it"


def _refused_handshake(address: EngineAddress, chain: list[BaseException]) -> tuple[str, str, str]:
    said = next(each for each in chain if isinstance(each, ssl.SSLError))
    if said.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "docker.url", f"the engine at {address.url} does not speak TLS", "leave out docker.ca_file"
    if address.cert_file is None:
        mend = "give docker.cert_file and docker.key_file"
        return "docker.cert_file", f"the engine at {address.url} wants a certificate of ours: {said}", mend
    mend = "give one that is signed by the engine's own authority"
    return "docker.cert_file", f"the engine at {address.url} refuses {address.cert_file}: {said}", mend


def reason_of(error: BaseException) -> str:
    """The last word of an error that libraries have wrapped into one another."""
    *_, last = _chain(error)
    return str(last) or type(last).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__
