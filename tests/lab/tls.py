"""Certificates of the tests' own, and clients that look at what is served."""

import hashlib
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.lab.need import need


class Pem(NamedTuple):
    """A certificate and its key, each as PEM text."""

    chain: str
    key: str

    @property
    def whole(self) -> str:
        return self.chain + self.key

    @property
    def fingerprint(self) -> str:
        """SHA-1 of the first certificate."""
        first = self.chain[: self.chain.index("-----END") + 40].partition("-----END CERTIFICATE-----")
        return hashlib.sha1(ssl.PEM_cert_to_DER_cert(first[0] + first[1])).hexdigest().upper()


def make(*names: str, days: int = 30, kind: str = "ec") -> Pem:
    """A self-signed certificate for DNS names, valid from now on; ``kind`` is ec, ed25519 or rsa:BITS."""
    key_options = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else [kind]
    alternatives = ",".join(f"DNS:{name}" for name in names)
    with tempfile.TemporaryDirectory() as directory:
        key, chain = Path(directory) / "key", Path(directory) / "chain"
        command = [need("openssl"), "req", "-x509", "-newkey", *key_options, "-nodes", "-days", str(days)]
        command += ["-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}"]
        subprocess.run([*command, "-keyout", key, "-out", chain], check=True, capture_output=True, timeout=60)
        return Pem(chain.read_text(), key.read_text())


class Seen(NamedTuple):
    """What a client was offered; ``fingerprint`` is as HAProxy shows it."""

    fingerprint: str
    version: str
    alpn: str | None
    cipher: str


def client(
    port: int,
    server_name: str | None,
    *,
    most: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ciphers: str | None = None,
    alpn: str = "h2",
) -> ssl.SSLSocket:
    """A connected client that takes any certificate. Raises OSError, ssl.SSLError too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if most != ssl.TLSVersion.MAXIMUM_SUPPORTED:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = most
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname=server_name
    )


def look(port: int, server_name: str | None, **more: object) -> Seen:
    """One handshake, and what came of it."""
    with client(port, server_name, **more) as connection:  # type: ignore[arg-type]
        certificate = connection.getpeercert(binary_form=True) or b""
        cipher = connection.cipher() or ("", "", 0)
        return Seen(
            hashlib.sha1(certificate).hexdigest().upper(),
            connection.version() or "",
            connection.selected_alpn_protocol(),
            cipher[0],
        )
