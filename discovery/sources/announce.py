"""One address announced by hand as a source, with a check if wanted: `discovery announce NAME ADDRESS`."""

import threading
import time
from dataclasses import replace

from discovery.catalog import Attributes, Instance, Problem, Registration, Scheme
from discovery.errors import ConfigError, SchemaError
from discovery.schema import parse_address, parse_id, parse_name
from discovery.sources.checker import Checker
from discovery.sources.checks import Check

CONFIRM_SECONDS = 10.0
"""How often a look is asked for although nothing changed."""


class AnnounceSource:
    """See ``base.Source``. Registers one instance, with a check only while that says it serves.

    Its id is ``<node>:<ip>:<port>``, as one node may announce many, unless ``instance_id`` is given.
    ``address`` is ``ip:port``; ``check`` is None, ``tcp`` or ``http:/path``. At first one good check
    registers; later two in a row do, and three bad ones in a row withdraw. Raises ConfigError for
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
        self._check = parse_check(check, host, port, timeout_seconds, interval_seconds) if check else None
        self._changed = threading.Event()
        self._confirm_due = 0.0
        self._checker: Checker | None = None
        if self._check is not None:
            self._checker = Checker(self._changed.set)
            self._checker.watch({self._check: self._check})

    @property
    def problems(self) -> tuple[Problem, ...]:
        """See ``base.Source``."""
        reason = None if self._serves() or self._checker is None else self._checker.reason(self._check)
        if reason is None:
            return ()
        return (Problem(self._registration.service, self._registration.instance.address, reason),)

    def registrations(self) -> tuple[Registration, ...]:
        """See ``base.Source``."""
        self._confirm_due = time.monotonic() + CONFIRM_SECONDS
        return (self._registration,) if self._serves() else ()

    def drain(self) -> None:
        """From now on register it as draining, so that the edges send it nothing new. For any thread."""
        instance = self._registration.instance
        attributes = replace(instance.attributes, draining=True)
        self._registration = Registration(
            self._registration.service, replace(instance, attributes=attributes)
        )
        self._changed.set()

    def wait(self, timeout_seconds: float) -> bool:
        """See ``base.Source``."""
        changed = self._changed.wait(min(timeout_seconds, max(0.0, self._confirm_due - time.monotonic())))
        if changed:
            self._changed.clear()
        return changed or time.monotonic() >= self._confirm_due

    def close(self) -> None:
        """See ``base.Source``."""
        if self._checker is not None:
            self._checker.close()
        self._changed.set()

    def _serves(self) -> bool:
        return self._checker is None or self._checker.up(self._check)


def parse_check(text: str, host: str, port: int, timeout_seconds: float, interval_seconds: float) -> Check:
    """``tcp`` or ``http:/path`` as a check of this address; ConfigError for anything else."""
    check = Check("tcp", "", host, port, interval_seconds=interval_seconds, timeout_seconds=timeout_seconds)
    if text == "tcp":
        return check
    kind, _, path = text.partition(":")
    if kind == "http" and path.startswith("/") and path.isascii() and path.isprintable() and " " not in path:
        return replace(check, kind="http", path=path)
    raise ConfigError("--check", f"{text!r} is no check", "tcp or http:/path")
