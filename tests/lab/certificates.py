"""Certificates for tests, made by openssl: authorities, and what they sign."""

import subprocess
from pathlib import Path

from tests.lab.need import need


class Authority:
    """A certificate authority of its own in ``directory``; ``ca.pem`` is its certificate."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.ca_file = directory / "ca.pem"
        self._key = directory / "ca-key.pem"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *(
                "-keyout",
                str(self._key),
                "-out",
                str(self.ca_file),
                "-subj",
                f"/CN=authority {directory.name}",
            ),
        )

    def sign(self, name: str, alternative_names: str = "") -> tuple[Path, Path]:
        """Certificate and key for ``name``, valid for names such as ``IP:127.0.0.1,DNS:localhost``."""
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}-key.pem"
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative_names}\n" if alternative_names else "")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.ca_file), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate)),
        )
        return certificate, key


def _openssl(*arguments: str) -> None:
    subprocess.run([need("openssl"), *arguments], check=True, capture_output=True, timeout=60)
