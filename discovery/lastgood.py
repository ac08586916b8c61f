"""The last entries seen, on disk: what a node serves when it starts and the store is out of reach."""

import json
from collections.abc import Mapping
from pathlib import Path

import structlog

from discovery import files
from discovery.errors import ApplyError
from discovery.stores.base import Entry

log = structlog.get_logger(__name__)

_FORMAT = 1


class LastGood:
    """One JSON file of entries. An unreadable file counts as none; failing to write is logged once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False

    def load(self) -> dict[str, Entry]:
        """The saved entries by key, none if nothing (readable) was saved."""
        try:
            data = json.loads(self._path.read_text())
            if data["format"] != _FORMAT:
                return {}
            return {
                key: Entry(key, value, created, modified) for key, value, created, modified in data["entries"]
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("last_good_unreadable", path=str(self._path), error=str(error))
            return {}

    def save(self, entries: Mapping[str, Entry]) -> None:
        """Replace the file. Values that a store could not read are not kept."""
        rows = [(e.key, e.value, e.created, e.modified) for e in entries.values() if e.error is None]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self._path, json.dumps({"format": _FORMAT, "entries": rows}), mode=0o600)
        except (OSError, ApplyError) as error:
            if not self._failed:
                log.warning("last_good_not_saved", path=str(self._path), error=str(error))
            self._failed = True
        else:
            self._failed = False
