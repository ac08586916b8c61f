"""What HAProxy's checks say of its servers, read from ``show servers state``. Pure.

The bits are those of HAProxy's management guide and of its check.h and server.h, the same in 2.6 and 3.0.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from discovery.errors import ApplyError

Verdict = Literal["lives", "failed", "unchecked", "maintenance"]
"""``lives``: its checks did not fail, be it that none is through yet. ``failed``: they did, and it takes no
traffic. ``unchecked``: nobody can say. ``maintenance``: it is not meant to take traffic."""

_STOPPED = 0
_MAINTENANCE = 0x01 | 0x02 | 0x04 | 0x20
_CHECKED = 0x02 | 0x04  # configured and enabled


class ServerHealth(NamedTuple):
    """One server: its section's name, its own, and what is known of it."""

    backend: str
    server: str
    verdict: Verdict


def read_health(server_state: str) -> Iterator[ServerHealth]:
    """Every server in an answer to ``show servers state``. Raises ApplyError when it is none."""
    lines = iter(server_state.splitlines())
    header = next((line for line in lines if line.startswith("# ")), "")
    columns = {name: index for index, name in enumerate(header.removeprefix("# ").split())}
    wanted = ("be_name", "srv_name", "srv_op_state", "srv_admin_state", "srv_check_state")
    if not columns.keys() >= set(wanted):
        raise ApplyError(f"HAProxy answered 'show servers state' with {server_state[:200]!r}")
    for line in lines:
        fields = line.split()
        if len(fields) == len(columns):
            backend, server, *states = (fields[columns[name]] for name in wanted)
            yield ServerHealth(backend, server, verdict(*map(int, states)))


def verdict(operational: int, administrative: int, check: int) -> Verdict:
    """What the three states of a server mean together."""
    if administrative & _MAINTENANCE:
        return "maintenance"
    # Also of one whose checks were switched off since.
    if operational == _STOPPED:
        return "failed"
    return "lives" if check & _CHECKED == _CHECKED else "unchecked"
