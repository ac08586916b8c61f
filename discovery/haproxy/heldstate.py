"""What is held back, for the next agent: one that begins in the middle of a mass loss goes on holding.

The services are written as the keys they were made of, and read as any keys are, for whoever reads them may
be another version.
"""

from collections.abc import Mapping
from pathlib import Path

from discovery.builder import CatalogBuilder
from discovery.catalog import Service
from discovery.haproxy.massloss import Held, Key
from discovery.lastgood import LastGood
from discovery.schema import instance_keys, service_prefix
from discovery.stores.base import Entry, Snapshot


class HeldServices:
    """One file, beside that of ``HeldFile``. Raises nothing: what cannot be kept is logged."""

    def __init__(self, directory: Path) -> None:
        self._file = LastGood(directory / "held-services.json")

    def save(self, held: Mapping[Key, Held]) -> None:
        """Keep what these instances are."""
        self._file.save({key: Entry(key, value, 0, 0) for key, value in held_keys(held).items()})

    def load(self) -> Mapping[str, Service]:
        """The services by name, with the instances that were held, as far as they were kept."""
        return CatalogBuilder().reset(Snapshot(0, self._file.load())).services


def held_keys(held: Mapping[Key, Held]) -> dict[str, str]:
    """The keys from which services with these instances can be made again."""
    keys: dict[str, str] = {}
    # The service as it was last counts.
    for (name, _), each in sorted(held.items(), key=lambda item: item[1].lost_seconds):
        prefix = service_prefix(name)
        keys[f"{prefix}scheme"] = each.service.scheme
        if each.service.host_port is not None:
            keys[f"{prefix}host_port"] = str(each.service.host_port)
        keys |= {f"{prefix}options/{option}": text for option, text in each.service.options.items()}
        keys |= instance_keys(name, each.instance)
    return keys
