"""What a container asks its registrator to check, by the conventions of gliderlabs' registrator. Pure.

    SERVICE_CHECK_HTTP      a path: GET it; 2xx and 3xx are good
    SERVICE_CHECK_CMD       a command inside the container: exit status 0 is good
    SERVICE_CHECK_TCP       anything but empty: connect
    SERVICE_CHECK_INTERVAL  `10s`, `1m30s`, `500ms`, or a number of seconds; default 10s
    SERVICE_CHECK_TIMEOUT   of one attempt; default 2s
    SERVICE_CHECK_RISE      good ones in a row until it is registered again; default 2
    SERVICE_CHECK_FALL      bad ones in a row until it is withdrawn; default 3

Of several kinds the first in this order is done. The first good check of all registers at once.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from discovery.errors import SchemaError
from discovery.schema import printable

DEFAULT_INTERVAL_SECONDS = 10.0
DEFAULT_TIMEOUT_SECONDS = 2.0
DEFAULT_RISE = 2
DEFAULT_FALL = 3

LEAST_INTERVAL_SECONDS = 0.1
MOST_SECONDS = 86_400.0
MOST_ROW = 100
COMMAND_CHARACTERS = 4096
PATH_CHARACTERS = 2000

UNSUPPORTED = ("check_https", "check_script", "check_ttl", "check_grpc", "check_http_method")
"""Checks of the convention that an agent of Consul would run, and nobody here does."""

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|m|s))+")
_PART = re.compile(r"([0-9.]+)(h|ms|m|s)")


@dataclass(frozen=True, slots=True)
class Check:
    """How to see whether one registered port serves; everything is validated.

    ``path`` is that of an ``http`` check, empty otherwise; ``command`` is the argument vector of a
    ``command`` check, empty otherwise. A check of the network goes to ``host`` and ``port``, the address
    that is registered. ``own_host`` and ``own_port`` are the container's own, where it has one that its
    node can reach: there no docker-proxy accepts connections for a server that does not run.
    """

    kind: Literal["http", "tcp", "command"]
    container_id: str
    host: str
    port: int
    own_host: str | None = None
    own_port: int | None = None
    path: str = ""
    command: tuple[str, ...] = ()
    interval_seconds: float = DEFAULT_INTERVAL_SECONDS
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    rise: int = DEFAULT_RISE
    fall: int = DEFAULT_FALL
