"""Certificates for HTTPS: read from a directory, each judged by itself, and what HAProxy is given of them.

One bad file must not keep HAProxy from starting, nor the other certificates from being renewed, so HAProxy
reads none of the files that people write: those that are good are written again, beside its configuration.
Names are relative to it, and so the same in every generation and at the runtime socket:

NAME.pem        one certificate, its chain and its key
certs.default   a copy of the one that answers who asks for no name we have; it can be exchanged while
                HAProxy runs, which the certificate of a list's first line otherwise cannot
certs.list      all of them, certs.default first, without names of its own
"""

import base64
import hashlib
import os
import re
import ssl
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from discovery.catalog import Consequence, Problem
from discovery.errors import SchemaError
from discovery.schema import printable

LIST = "certs.list"
DEFAULT = "certs.default"
DEFAULT_NAME = "default"
"""A certificate of this name answers who asks for no name we have; else the first by name does."""

FILE_BYTES = 128 * 1024
NAME_LENGTH = 200

_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{NAME_LENGTH}}}")
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_CERTIFICATES = ("CERTIFICATE", "X509 CERTIFICATE")
_REASONS = {
    "KEY_VALUES_MISMATCH": "the private key is not that of the first certificate",
    "KEY_TYPE_MISMATCH": "the private key is not that of the first certificate",
    "NO_CERTIFICATE_ASSIGNED": "the private key is not that of the first certificate",
}
_KEPT: Consequence = "kept at its last good value"


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that HAProxy can serve. ``text`` is PEM: it, its chain, its private key; without a blank line.

    ``not_before`` and ``not_after`` are seconds since 1970; ``fingerprint`` is SHA-1 in capital hexadecimal
    digits, as HAProxy shows it.
    """

    name: str
    text: str = field(repr=False)
    not_before: float
    not_after: float
    fingerprint: str

    @property
    def file(self) -> str:
        """The name of its file beside the configuration, by which HAProxy knows it."""
        return f"{self.name}.pem"


class Certificates(NamedTuple):
    """The usable ones by name, in the order of their names, and what is wrong with those and the rest."""

    usable: Mapping[str, Certificate]
    problems: tuple[Problem, ...]


def default_of(certificates: Mapping[str, Certificate]) -> Certificate | None:
    """The one that answers who asks for no name we have; None if there is none at all."""
    name = DEFAULT_NAME if DEFAULT_NAME in certificates else min(certificates, default=None)
    return None if name is None else certificates[name]


def certificate_files(certificates: Mapping[str, Certificate]) -> Mapping[str, str]:
    """The files beside the configuration, by name, secret all of them; none without a certificate."""
    default = default_of(certificates)
    if default is None:
        return {}
    ordered = [certificates[name] for name in sorted(certificates)]
    lines = "".join(f"{each.file}\n" for each in ordered)
    # The filter takes every name of the certificate away from this line.
    return {each.file: each.text for each in ordered} | {
        DEFAULT: default.text,
        LIST: f"{DEFAULT} !*\n{lines}",
    }


def is_secret(file: str) -> bool:
    """Whether the file of this name beside the configuration holds a private key, never to be shown."""
    return file == DEFAULT or file.endswith(".pem")


# ---- reading ----------------------------------------------------------------------------------------


def read_certificates(path: Path, now_seconds: float, previous: Mapping[str, Certificate]) -> Certificates:
    """The certificates in a directory (or of one file), as of ``now_seconds`` since 1970.

    ``NAME.pem`` or ``NAME.crt`` holds a certificate, its chain, and its key unless that is in ``NAME.key``;
    other files, hidden ones and directories are not looked at. One that became unusable is kept as it was in
    ``previous``, as are all of them if none is left, for that is what a volume that is not there looks like.
    """
    try:
        sources, problems = _sources(path)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        return Certificates(previous, (Problem(None, printable(str(path)), reason, _consequence(previous)),))
    usable: dict[str, Certificate] = {}
    for name, (file, key_file) in sorted(sources.items()):
        certificate = was = previous.get(name)
        try:
            certificate = parse_certificate(name, _read(file), _read(key_file) if key_file else "", was)
        except SchemaError as error:
            problems.append(Problem(None, printable(file.name), str(error), _consequence(was)))
        if certificate is not None:
            usable[name] = certificate
            problems += _out_of_date(file, certificate, now_seconds)
    if not usable:
        reason = "holds no certificate that can be used, so that there is no HTTPS"
        if previous:
            reason = "holds no certificate that can be used"
        problems.append(Problem(None, printable(str(path)), reason, _consequence(previous)))
        return Certificates(previous, tuple(problems))
    return Certificates(usable, tuple(problems))


def _consequence(previous: object) -> Consequence:
    return _KEPT if previous else "left out"


def _sources(path: Path) -> tuple[dict[str, tuple[Path, Path | None]], list[Problem]]:
    """The files of each certificate by its name: where it is, and its key if that is another."""
    if not stat.S_ISDIR(path.stat().st_mode):
        key_file = path.with_suffix(".key")
        return {_checked_stem(path): (path, key_file if key_file.exists() else None)}, []
    sources: dict[str, tuple[Path, Path | None]] = {}
    problems: list[Problem] = []
    files = {each.name: each for each in path.iterdir() if _is_candidate(each)}
    for name, file in sorted(files.items()):
        if not _NAME.fullmatch(file.stem):
            reason = f"its name may only have {NAME_LENGTH} of the characters A-Z a-z 0-9 _ . -"
            problems.append(Problem(None, printable(name), reason))
        elif file.suffix == ".key":
            if not {f"{file.stem}.pem", f"{file.stem}.crt"} & files.keys():
                problems.append(Problem(None, name, f"there is no {file.stem}.crt that it could belong to"))
        elif file.suffix == ".crt" and f"{file.stem}.pem" in files:
            problems.append(Problem(None, name, f"{file.stem}.pem is used instead"))
        elif not _is_auxiliary(file, files):
            sources[file.stem] = (file, files.get(f"{file.stem}.key"))
    return sources, problems


def _checked_stem(path: Path) -> str:
    """The name of the one certificate, whatever its file is called."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem)[:NAME_LENGTH]


def _is_candidate(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix in (".pem", ".crt", ".key") and not path.is_dir()


def _is_auxiliary(file: Path, files: Mapping[str, Path]) -> bool:
    """Whether it belongs to another certificate, as companions of nginx-proxy keep them."""
    stem, _, kind = file.stem.rpartition(".")
    if kind == "dhparam":
        return True
    has_owner = f"{stem}.crt" in files or f"{stem}.pem" in files
    return kind == "chain" and has_owner and f"{file.stem}.key" not in files


def _read(path: Path) -> str:
    """A file's text. Raises SchemaError if it is no file of a reasonable size, or may not be read."""
    try:
        # A pipe would make us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SchemaError("is no regular file")
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise SchemaError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES:
        raise SchemaError(f"{path.name} is larger than {FILE_BYTES // 1024} KiB")
    return data.decode(errors="replace")


def _out_of_date(file: Path, certificate: Certificate, now_seconds: float) -> Iterator[Problem]:
    if now_seconds > certificate.not_after:
        yield Problem(
            None, printable(file.name), f"has expired at {_shown(certificate.not_after)}", "reported"
        )
    elif now_seconds < certificate.not_before:
        yield Problem(
            None, printable(file.name), f"is not valid before {_shown(certificate.not_before)}", "reported"
        )


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


# ---- judging ----------------------------------------------------------------------------------------


def parse_certificate(
    name: str, text: str, key_text: str = "", was: Certificate | None = None
) -> Certificate:
    """A certificate from PEM text; the key may be in a text of its own. ``was`` itself if it is the same.

    Raises SchemaError with a reason that has nothing of the key.
    """
    blocks = _blocks(text)
    chain = [data for label, data in blocks if label in _CERTIFICATES]
    keys = [each for each in (*blocks, *_blocks(key_text)) if each[0].endswith("PRIVATE KEY")]
    if not chain:
        raise SchemaError("holds no certificate")
    if not keys:
        raise SchemaError(f"there is no private key in it, nor in {name}.key")
    whole = "".join((*(_pem("CERTIFICATE", data) for data in chain), _pem(*keys[0])))
    if was is not None and was.text == whole:
        return was
    _try(whole)
    not_before, not_after = _validity(chain[0])
    fingerprint = hashlib.sha1(chain[0], usedforsecurity=False).hexdigest().upper()
    return Certificate(name, whole, not_before, not_after, fingerprint)


def _blocks(text: str) -> list[tuple[str, bytes]]:
    """Label and bytes of each PEM block; what stands around them is left out."""
    found = _BLOCK.findall(text)
    if len(found) != text.count("-----BEGIN "):
        raise SchemaError("is not complete: there is a beginning without its end")
    blocks = []
    for label, body in found:
        if label.startswith("ENCRYPTED") or "Proc-Type:" in body:
            raise SchemaError("the private key is encrypted; keep it without a passphrase")
        try:
            blocks.append((label, base64.b64decode("".join(body.split()), validate=True)))
        except ValueError:
            raise SchemaError("is damaged: there is something that is no base64") from None
    return blocks


def _pem(label: str, data: bytes) -> str:
    text = base64.b64encode(data).decode()
    lines = (text[start : start + 64] for start in range(0, len(text), 64))
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----")) + "\n"


def _try(text: str) -> None:
    """Raise SchemaError if OpenSSL would not serve it."""
    # OpenSSL reads files only; this one is in memory, so that the key is nowhere else.
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
        file.flush()
        try:
            # Were there still a passphrase to be asked for, nobody is there to be asked.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                f"/proc/self/fd/{descriptor}", password=lambda: b""
            )
        except ssl.SSLError as error:
            reason = (error.reason or "").replace("_", " ").lower() or "it cannot be used"
            raise SchemaError(_REASONS.get(error.reason or "", f"OpenSSL refuses it: {reason}")) from None
        except (OSError, ValueError) as error:
            raise SchemaError(f"OpenSSL cannot read it: {type(error).__name__}") from None


def _validity(certificate: bytes) -> tuple[float, float]:
    """From when until when it is valid, of X.509 in DER (RFC 5280, section 4.1)."""
    try:
        (_, body), *_ = _elements(certificate)
        (_, to_be_signed), *_ = _elements(body)
        fields = list(_elements(to_be_signed))
        if fields[0][0] == 0xA0:
            fields.pop(0)
        # serialNumber, signature, issuer, validity
        first, last = _elements(fields[3][1])
        return _seconds(*first), _seconds(*last)
    except (IndexError, ValueError) as error:
        raise SchemaError("its dates cannot be read") from error


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and contents of each DER element, one after the other."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size])
            at += size
        if at + length > len(data):
            raise ValueError("an element is longer than what holds it")
        yield tag, data[at : at + length]
        at += length


def _seconds(tag: int, data: bytes) -> float:
    """A UTCTime (its years are 1950 to 2049) or GeneralizedTime."""
    text = data.decode("ascii")
    if tag == 0x17:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
