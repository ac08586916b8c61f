"""The configuration as it would be written, without touching what runs."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from discovery.catalog import Catalog
from discovery.haproxy.generations import Generations
from discovery.haproxy.model import build
from discovery.haproxy.program import check, haproxy_version, inspect_machine
from discovery.haproxy.render import CONFIG, Renderer
from discovery.haproxy.settings import ProxySettings
from discovery.templating import Templates


def render_files(settings: ProxySettings, catalog: Catalog) -> Mapping[str, str]:
    """HAProxy's files by name, as this catalog makes them; ports in use are not looked for.

    Raises RenderError naming the template's file and line.
    """
    renderer = Renderer(settings, inspect_machine(settings), Templates(*settings.templates))
    return renderer.render(build(catalog, settings))


def check_files(settings: ProxySettings, files: Mapping[str, str]) -> None:
    """Have HAProxy check these files. Raises ApplyError with what it says against them."""
    program = haproxy_version(settings.haproxy)
    with tempfile.TemporaryDirectory() as directory:
        for name, text in files.items():
            (Path(directory) / name).write_text(text)
        check(program, Path(directory) / CONFIG, settings.check_timeout_seconds)


def running_files(settings: ProxySettings) -> Mapping[str, str]:
    """The files that HAProxy was last seen running on this node; none if it never did."""
    return Generations(settings.directory).good()
