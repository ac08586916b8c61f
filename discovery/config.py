"""How settings are read: from flags, environment and file, loaded once into frozen Settings.

Precedence: flag > ``DISCOVERY_*`` environment > file > default. A key in the file that no setting has is
an error, for a misspelt setting that is silently ignored is found only when it was needed.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from discovery.errors import ConfigError
from discovery.settings import Section, Settings
from discovery.template_files import TemplateFile, parse_template


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people meet it: file key, flag, environment variable."""

    key: str
    flag: str
    field: FieldInfo

    @property
    def environment(self) -> str:
        """Its variable."""
        return "DISCOVERY_" + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flag, and another one that some know it by."""
        alias = _extra(self.field)["alias"]
        return (self.flag, alias) if alias else (self.flag,)

    @property
    def secret(self) -> bool:
        """Whether its value must not be shown."""
        return bool(_extra(self.field)["secret"])

    @property
    def is_switch(self) -> bool:
        """Whether its flag takes no value."""
        return self.field.annotation is bool


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, generic templates, and by file key where each value came from."""

    settings: Settings
    templates: tuple[TemplateFile, ...]
    origins: Mapping[str, str]


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key = prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{key}.")
        else:
            flag = _extra(field)["flag"] or "--" + key.replace(".", "-").replace("_", "-")
            yield Setting(key, flag, field)


SETTINGS: tuple[Setting, ...] = tuple(_walk(Settings, ""))
"""Every setting, in the order of the documentation."""


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Configuration:
    """Merge the sources and validate. ``flags`` are by file key, without those that were not given.

    Raises ConfigError that names the setting as the person wrote it.
    """
    from_file, templates = _read(file) if file is not None else ({}, ())
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        origins[setting.key] = "default"
        for origin, found in (
            (f"file {file}", from_file.get(setting.key)),
            (f"environment {setting.environment}", environ.get(setting.environment)),
            (f"flag {setting.flag}", flags.get(setting.key)),
        ):
            if found is not None:
                values[setting.key] = found
                origins[setting.key] = origin
    return Configuration(_validate(values, origins), templates, origins)


def _validate(values: Mapping[str, object], origins: Mapping[str, str]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        words = [str(part) for part in first["loc"]]
        key = next(
            (".".join(words[:n]) for n in (3, 2, 1) if ".".join(words[:n]) in origins), ".".join(words)
        )
        raise ConfigError(key, first["msg"], f"set by {origins.get(key, 'the file')}") from error


def _read(file: Path) -> tuple[dict[str, object], tuple[TemplateFile, ...]]:
    """The file's values by dotted key, and its ``[[template]]`` entries."""
    try:
        data = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError("--config", f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--config", f"{file} is no TOML: {error}") from error
    entries = data.pop("template", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("template", f"is no list of tables in {file}", "write [[template]]")
    values = dict(_flatten(data, ""))
    known = [setting.key for setting in SETTINGS]
    for key, value in values.items():
        if key not in known:
            # A table that is none of ours is a misspelt section, or [template] for [[template]].
            like = (
                {name.partition(".")[0] for name in known}
                if isinstance(value, dict)
                else {*known, "template"}
            )
            near = get_close_matches(key, sorted(like), n=1, cutoff=0.5)
            mend = f"did you mean {near[0]}?" if near else "`discovery config` lists every setting"
            raise ConfigError(key, f"there is no such setting, in {file}", mend)
    return values, tuple(
        parse_template(index, entry, file.absolute().parent) for index, entry in enumerate(entries)
    )


def _flatten(data: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    sections = {setting.key.rpartition(".")[0] for setting in SETTINGS}
    for name, value in data.items():
        key = prefix + name
        if isinstance(value, dict) and key in sections:
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value
