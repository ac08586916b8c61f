"""Files for other programs, made from templates: ``[[template]]`` in the configuration file, as in confd.

A template sees ``catalog``, ``services`` (the services in the order of their names) and ``keys`` (raw
values by whole key, below the template's prefix), and the functions getv, exists, ls and json. What it
writes reaches ``dest`` only whole and checked, and the program that reads it is told until it has heard.
"""

import contextlib
import grp
import json
import os
import pwd
import re
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import structlog

from discovery import files
from discovery.catalog import Catalog, Problem
from discovery.commands import run
from discovery.errors import ApplyError, CommandError, ConfigError
from discovery.feed import Feed, Published
from discovery.follow import MOST_SECONDS, QUIET_SECONDS
from discovery.schema import SERVICES
from discovery.templating import Templates

log = structlog.get_logger(__name__)

Keys = Feed[dict[str, str]]

_SRC = re.compile(r"\{\{\s*\.?src\s*\}\}")
_FIRST_READ_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_IDS = 2**32 - 1  # the last one means "leave as it is" to chown(2)
_MISSING = object()


# ---- settings ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """One ``[[template]]``. ``owner`` and ``group`` are numeric ids; None leaves those of the agent.

    ``check_cmd`` judges a new file, whose name takes the place of ``{{src}}``, before it becomes ``dest``.
    ``reload_cmd`` tells the program that reads ``dest``. Each may take ``timeout_seconds``.
    """

    src: Path
    dest: Path
    prefix: str = SERVICES
    check_cmd: str | None = None
    reload_cmd: str | None = None
    mode: int = 0o644
    owner: int | None = None
    group: int | None = None
    timeout_seconds: float = 30.0


def parse_template(index: int, table: Mapping[str, object], directory: Path = Path()) -> TemplateFile:
    """The settings in one table; relative paths start at ``directory``.

    Raises ConfigError that names the setting, such as ``template[0].mode``.
    """
    known = {field.name for field in fields(TemplateFile)}
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            mend = f"did you mean {near[0]}?" if near else f"it may have {', '.join(sorted(known))}"
            raise ConfigError(f"template[{index}].{key}", "there is no such setting", mend)
    for key in ("src", "dest"):
        if key not in table:
            raise ConfigError(f"template[{index}].{key}", "is missing")
    parsed: dict[str, Any] = {}
    for key, value in table.items():
        try:
            parsed[key] = _PARSERS[key](value)
        except ValueError as error:
            raise ConfigError(f"template[{index}].{key}", str(error)) from error
    parsed["src"], parsed["dest"] = directory / parsed["src"], directory / parsed["dest"]
    return TemplateFile(**parsed)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def _path(value: object) -> Path:
    return Path(_text(value)).expanduser()


def _prefix(value: object) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError(f"{text!r} does not begin with /")
    return text.rstrip("/") + "/"


def _mode(value: object) -> int:
    # A TOML number is refused, for `mode = 644` would be 0o1204.
    if not isinstance(value, str) or not re.fullmatch(r"(0o)?[0-7]{3,5}", value) or int(value, 8) > 0o7777:
        raise ValueError(f'{value!r} is no text of octal digits, such as "0644"')
    return int(value, 8)


def _user(value: object) -> int:
    return _numeric_id(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


def _group(value: object) -> int:
    return _numeric_id(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def _numeric_id(value: object, kind: str, look_up: Callable[[str], int]) -> int:
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    try:
        number = int(name) if name.isascii() and name.isdigit() else look_up(name)
    except KeyError:
        raise ValueError(f"there is no {kind} {name!r} on this node") from None
    if number >= _IDS:
        raise ValueError(f"{number} is no id of a {kind}")
    return number


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise ValueError(f"{value!r} is no number of seconds from 0 to 3600")
    return float(value)


_PARSERS: Mapping[str, Callable[[object], object]] = {
    "src": _path,
    "dest": _path,
    "prefix": _prefix,
    "check_cmd": _text,
    "reload_cmd": _text,
    "mode": _mode,
    "owner": _user,
    "group": _group,
    "timeout_seconds": _seconds,
}


# ---- applying ---------------------------------------------------------------------------------------


class TemplateFileApplier:
    """Keeps one ``dest`` as its template, the catalog and the raw keys say."""

    def __init__(self, template: TemplateFile, keys: Keys) -> None:
        """``keys`` gives what is below the template's prefix, by whole key."""
        self.name = f"template {template.dest}"
        self._template = template
        self._keys = keys
        self._templates = Templates(template.src.absolute().parent)
        # Whether an earlier process wrote dest and died before the reload cannot be known.
        self._must_reload = template.reload_cmd is not None

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        """Return once ``dest`` is right and its reader was told.

        Raises RenderError or ApplyError. ``dest`` is then as it was, unless the reload is what failed: that
        is repeated by the next call.
        """
        text = self._render(catalog)
        if not self._is_in_place(text):
            self._check(text)
            self._write(text)
        if self._must_reload:
            self._reload()
        return ()

    def _render(self, catalog: Catalog) -> str:
        published = self._keys.latest or self._keys.wait(0, _FIRST_READ_SECONDS)
        if published is None:
            raise ApplyError(
                f"{self._template.dest}: keys below {self._template.prefix} have not been read yet"
            )
        services = [catalog.services[name] for name in sorted(catalog.services)]
        functions = key_functions(published.value)
        name = self._template.src.name
        return self._templates.render(
            name, catalog=catalog, services=services, keys=published.value, **functions
        )

    def _is_in_place(self, text: str) -> bool:
        """Whether ``dest`` has this text, mode, owner and group."""
        wanted = self._template
        try:
            status = wanted.dest.stat()
            return (
                wanted.dest.read_bytes() == text.encode()
                and status.st_mode & 0o7777 == wanted.mode
                and wanted.owner in (None, status.st_uid)
                and wanted.group in (None, status.st_gid)
            )
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ApplyError(f"{wanted.dest}: cannot be read: {error.strerror}") from error

    def _check(self, text: str) -> None:
        command = self._template.check_cmd
        if command is None:
            return
        with _candidate(self._template.dest, text) as path:
            quoted = shlex.quote(str(path))
            try:
                run(_SRC.sub(lambda _match: quoted, command), self._template.timeout_seconds)
            except CommandError as error:
                # The file's name is another each time, but the failure is the same one.
                reason = str(error).replace(str(path), "{{src}}")
                raise ApplyError(f"{self._template.dest}: left as it was, check_cmd {reason}") from error

    def _write(self, text: str) -> None:
        wanted = self._template
        files.replace(wanted.dest, text, mode=wanted.mode, owner=wanted.owner, group=wanted.group)
        self._must_reload = wanted.reload_cmd is not None
        log.info("template_written", dest=str(wanted.dest))

    def _reload(self) -> None:
        command = self._template.reload_cmd
        if command is not None:
            try:
                run(command, self._template.timeout_seconds)
            except CommandError as error:
                raise ApplyError(f"{self._template.dest}: written, reload_cmd {error}") from error
            log.info("template_reloaded", dest=str(self._template.dest))
        self._must_reload = False


@contextmanager
def _candidate(dest: Path, text: str) -> Iterator[Path]:
    """``text`` in a file beside ``dest``, for a check may follow relative includes; gone afterwards."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{dest.stem}.", suffix=dest.suffix, dir=dest.parent)
    except OSError as error:
        raise ApplyError(f"{dest}: cannot be written: {error}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
        yield Path(name)
    except OSError as error:
        raise ApplyError(f"{dest}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()


def poke_on_keys(keys: Keys, poke: Callable[[], None], stop: threading.Event) -> None:
    """Call ``poke`` after each burst of changes of the keys, until ``stop``.

    Keys may change although the catalog does not.
    """
    seen: Published[dict[str, str]] | None = None
    while not stop.is_set():
        newer = keys.wait(seen.sequence if seen else 0, _LOOK_SECONDS)
        if newer is not None:
            seen = keys.gather(newer, QUIET_SECONDS, MOST_SECONDS)
            poke()


# ---- in templates -----------------------------------------------------------------------------------


def key_functions(keys: Mapping[str, str]) -> Mapping[str, Callable[..., object]]:
    """What a template may call, named as in confd: over whole keys, with or without a final slash."""

    def getv(key: str, default: object = _MISSING) -> object:
        """The value of ``key``, else ``default``; an error without one."""
        value = keys.get(key, default)
        if value is _MISSING:
            raise LookupError(f"there is no key {key}")
        return value

    def exists(key: str) -> bool:
        """Whether there is such a key."""
        return key in keys

    def ls(directory: str) -> list[str]:
        """The names directly below ``directory``, sorted."""
        prefix = directory.rstrip("/") + "/"
        return sorted({key.removeprefix(prefix).partition("/")[0] for key in keys if key.startswith(prefix)})

    return {"getv": getv, "exists": exists, "ls": ls, "json": json.loads}
