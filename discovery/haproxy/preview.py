"""The configuration as it would be written, without touching what runs."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from discovery.catalog import Catalog
from discovery.haproxy.certificates import is_secret, read_certificates
from discovery.haproxy.disk import Disk
from discovery.haproxy.generations import Generations
from discovery.haproxy.model import build
from discovery.haproxy.program import check, haproxy_version
from discovery.haproxy.render import CONFIG
from discovery.haproxy.settings import ProxySettings


def render_files(settings: ProxySettings, catalog: Catalog) -> Mapping[str, str]:
    """HAProxy's files by name, as this catalog makes them; ports in use are not looked for.

    Among them are certificates with their keys: what is shown to people goes through ``without_secrets``.

    Raises RenderError naming the template's file and line.
    """
    model = build(catalog, settings)
    if settings.certs is not None:
        model = replace(model, certificates=read_certificates(settings.certs, time.time(), {}).usable)
    return Disk(settings, lambda _config: None).texts(model)


def check_files(settings: ProxySettings, files: Mapping[str, str]) -> None:
    """Have HAProxy check these files. Raises ApplyError with what it says against them."""
    program = haproxy_version(settings.haproxy)
    with tempfile.TemporaryDirectory() as directory:
        for name, text in files.items():
            (Path(directory) / name).write_text(text)
        check(program, Path(directory) / CONFIG, settings.check_timeout_seconds)


def without_secrets(files: Mapping[str, str]) -> Mapping[str, str]:
    """The files that may be shown."""
    return {name: text for name, text in files.items() if not is_secret(name)}


def running_files(settings: ProxySettings) -> Mapping[str, str]:
    """The files that HAProxy was last seen running on this node; none if it never did."""
    return Generations(settings.directory).good()
