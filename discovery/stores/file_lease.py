"""Leases of a file store: what makes keys expire although the process that wrote them is gone.

A lease is one JSON file, replaced as a whole at each keepalive. It names the keys it owns, each with the
identity of the file that its session wrote: a key that anyone has written anew since is no longer its
own. Time is CLOCK_BOOTTIME, which no one can set and which all containers of a host share; after another
boot every lease has expired.

A lease file that cannot be read (no writer of ours leaves such a one) ends nothing: its keys stay.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from discovery.errors import StoreRefused
from discovery.stores.file_tree import Identity, is_key

LEASE_BYTES = 64 * 1024 * 1024

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class BootClock:
    """Seconds since this boot, and which boot it is."""

    boot_id: str
    now: Callable[[], float]


def boot_clock() -> BootClock:
    """This machine's. Raises StoreRefused where /proc does not tell the boot."""
    try:
        boot_id = _BOOT_ID.read_text().strip()
    except OSError as error:
        raise StoreRefused(f"{_BOOT_ID}: {error.strerror}; a file store needs it to expire keys") from error
    return BootClock(boot_id, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True, slots=True)
class Lease:
    """``expires`` is in seconds of the boot ``boot_id``."""

    boot_id: str
    expires: float
    keys: Mapping[str, Identity]

    def left_seconds(self, clock: BootClock) -> float:
        """How long it still lives; 0 or less when it has expired."""
        return self.expires - clock.now() if self.boot_id == clock.boot_id else 0.0


def encode(lease: Lease) -> bytes:
    """A lease as the content of its file."""
    return json.dumps({"boot_id": lease.boot_id, "expires": lease.expires, "keys": lease.keys}).encode()


def decode(data: bytes) -> Lease:
    """The inverse. Raises ValueError when it is no lease."""
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    match content:
        case {"boot_id": str(boot_id), "expires": int() | float() as expires, "keys": dict(keys)}:
            return Lease(boot_id, float(expires), {key: _identity(key, claim) for key, claim in keys.items()})
        case _:
            raise ValueError("lacks boot_id, expires or keys")


def _identity(key: str, claim: object) -> Identity:
    match claim:
        case [int(inode), int(mtime_ns)] if is_key(key):
            return inode, mtime_ns
        case _:
            raise ValueError(f"claims {key!r} wrongly")
