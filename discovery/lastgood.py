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
            return _decode(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("last_good_unreadable", path=str(self._path), error=str(error))
            return {}

    def save(self, entries: Mapping[str, Entry]) -> bool:
        """Replace the file; False if that failed. Values that a store could not read are not kept."""
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
        return not self._failed


def _decode(data: object) -> dict[str, Entry]:
    """The inverse of what ``save`` encodes; ValueError for anything else, before anyone trips over it."""
    if (
        not isinstance(data, dict)
        or data.get("format") != _FORMAT
        or not isinstance(data.get("entries"), list)
    ):
        raise ValueError(f"no list of entries in format {_FORMAT}")
    entries = {}
    for row in data["entries"]:
        if not isinstance(row, list) or tuple(map(type, row)) != (str, str, int, int):
            raise ValueError("an entry is not [key, value, created, modified]")
        entries[row[0]] = Entry(*row)
    return entries
