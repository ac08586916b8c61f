"""One address announced by hand as a source, with a check if wanted: `discovery announce NAME ADDRESS`."""

import http.client
import socket
import threading
import time
from collections.abc import Callable

import structlog

from discovery.catalog import Attributes, Instance, Problem, Registration, Scheme
from discovery.errors import ConfigError, SchemaError
from discovery.schema import parse_address, parse_id, parse_name

log = structlog.get_logger(__name__)

RISE = 2
FALL = 3
CONFIRM_SECONDS = 10.0
"""How often a look is asked for although nothing changed."""

Check = Callable[[], str | None]
"""Looks once at what is announced; why it does not serve, None when it does."""


class AnnounceSource:
    """See ``base.Source``. Registers one instance, with a check only while that says it serves.

    Its id is ``<node>:<ip>:<port>``, as one node may announce many, unless ``instance_id`` is given.
    ``address`` is ``ip:port``; ``check`` is None, ``tcp`` or ``http:/path``. At first one good check
    registers; later ``RISE`` in a row do, and ``FALL`` bad ones in a row withdraw. Raises ConfigError for
    what cannot be announced.
    """

    name = "announce"
    relist_seconds = CONFIRM_SECONDS

    def __init__(
        self,
        service: str,
        address: str,
        *,
        node: str,
        scheme: Scheme | None = None,
        host_port: int | None = None,
        instance_id: str | None = None,
        check: str | None = None,
        interval_seconds: float = 5.0,
        timeout_seconds: float = 2.0,
    ) -> None:
        try:
            host, port = parse_address(address)
            id_ = parse_id(instance_id or f"{node}:{host}:{port}")
            name = parse_name(service)
        except SchemaError as error:
            raise ConfigError(f"announce {service} {address}", str(error)) from error
        attributes = Attributes(scheme=scheme, host_port=host_port, node=node)
        self._registration = Registration(name, Instance(id_, host, port, attributes))
        self._check = parse_check(check, host, port, timeout_seconds) if check else None
        self._interval_seconds = interval_seconds
        self._health = Health()
        self._reason: str | None = "it is not checked yet"
        self._changed = threading.Event()
        self._confirm_due = 0.0
        self._closed = threading.Event()
        if self._check is not None:
            self._thread = threading.Thread(
                target=self._watch, args=(self._check,), name="announce", daemon=True
            )
            self._thread.start()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """See ``base.Source``."""
        if self._check is None or self._health.up or self._reason is None:
            return ()
        return (Problem(self._registration.service, self._registration.instance.address, self._reason),)

    def registrations(self) -> tuple[Registration, ...]:
        """See ``base.Source``."""
        self._confirm_due = time.monotonic() + CONFIRM_SECONDS
        return (self._registration,) if self._check is None or self._health.up else ()

    def wait(self, timeout_seconds: float) -> bool:
        """See ``base.Source``."""
        changed = self._changed.wait(min(timeout_seconds, max(0.0, self._confirm_due - time.monotonic())))
        if changed:
            self._changed.clear()
        return changed or time.monotonic() >= self._confirm_due

    def close(self) -> None:
        """See ``base.Source``."""
        self._closed.set()
        self._changed.set()

    def _watch(self, check: Check) -> None:
        while not self._closed.is_set():
            reason = check()
            was = self._health.up
            self._reason = reason
            self._health.observe(reason is None)
            if self._health.up != was:
                address = self._registration.instance.address
                log.info("check_changed", address=address, up=self._health.up, reason=reason)
                self._changed.set()
            self._closed.wait(self._interval_seconds)


class Health:
    """Up after ``rise`` good checks in a row, at first after one; down after ``fall`` bad ones. Pure."""

    def __init__(self, rise: int = RISE, fall: int = FALL) -> None:
        self.up = False
        self._rise = rise
        self._fall = fall
        self._needed = 1
        self._row = 0

    def observe(self, good: bool) -> None:
        """Take one result into account."""
        self._row = self._row + 1 if good != self.up else 0
        if self._row >= self._needed:
            self.up = good
            self._needed = self._fall if good else self._rise
            self._row = 0


# ---- checks -----------------------------------------------------------------------------------------


def parse_check(text: str, host: str, port: int, timeout_seconds: float) -> Check:
    """``tcp`` or ``http:/path`` as a check of this address; ConfigError for anything else."""
    if text == "tcp":
        return lambda: _check_tcp(host, port, timeout_seconds)
    kind, _, path = text.partition(":")
    if kind == "http" and path.startswith("/") and path.isascii() and path.isprintable() and " " not in path:
        return lambda: _check_http(host, port, path, timeout_seconds)
    raise ConfigError("--check", f"{text!r} is no check", "tcp or http:/path")


def _check_tcp(host: str, port: int, timeout_seconds: float) -> str | None:
    try:
        with socket.create_connection((host, port), timeout_seconds):
            return None
    except OSError as error:
        return f"no connection: {error}"


def _check_http(host: str, port: int, path: str, timeout_seconds: float) -> str | None:
    """A GET that must be answered by 2xx or 3xx."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path, headers={"User-Agent": "discovery-check"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error!r}"
    finally:
        connection.close()
    return None if 200 <= status < 400 else f"GET {path} says {status}"
