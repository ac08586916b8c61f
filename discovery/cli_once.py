"""The commands that do one thing for a person, and end: what is served and why, static entries, stops."""

import json
import sys
from collections.abc import Iterator

import click
from rich.console import Console

from discovery import views
from discovery.catalog import Catalog
from discovery.cli_settings import (
    ALL,
    COMMON,
    EVERYWHERE,
    PROXY,
    load_configuration,
    open_configured,
    read_catalog,
    with_settings,
)
from discovery.errors import AgentUnavailable, UsageError
from discovery.status.ask import ask_agent
from discovery.stores.base import Store

FAILED = 1
ASK_SECONDS = 1.0  # a person waits for it


@click.command()
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="how long the agent may take",
)
@with_settings("state_dir", "log.")
@click.pass_context
def accept(context: click.Context, /, wait: float, **_flags: object) -> None:
    """Accept a mass loss: no longer serve the instances that vanished from the store all at once.

    They are held for a time, as long as HAProxy's checks find them living; this ends it, on this node.
    """
    from discovery.haproxy.accept import AcceptRequest, HeldFile

    directory = load_configuration(context).settings.proxy_dir
    loss = HeldFile(directory).read()
    if loss is None:
        click.echo("nothing is held back")
        return
    for line in views.loss_lines(loss):
        click.echo(line)
    AcceptRequest(directory).hand_over(wait)
    click.echo("accepted: they are served no more")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--watch", is_flag=True, help="print again with every change, until interrupted")
@with_settings(*EVERYWHERE, "status.")
@click.pass_context
def services(
    context: click.Context, /, name: str | None, as_json: bool, watch: bool, **_flags: object
) -> None:
    """List what is served, and what is quarantined and why.

    The agent of this node is asked what of it could not be here; without one, only the store tells.
    """
    from discovery.roles import status_address

    configuration = load_configuration(context)
    address = status_address(configuration.settings)
    with open_configured(configuration) as store:
        for catalog in _catalogs(store) if watch else iter([read_catalog(store)]):
            _print_services(catalog, name, as_json, address, store.url, must_exist=not watch)


def _catalogs(store: Store) -> Iterator[Catalog]:
    """The catalog now and after every change; ends with the store's first error."""
    from discovery.builder import CatalogBuilder
    from discovery.schema import SERVICES

    builder = CatalogBuilder()
    snapshot = store.snapshot(SERVICES)
    yield builder.reset(snapshot)
    for changes in store.watch(SERVICES, snapshot.revision):
        if changes.changes:
            yield builder.apply(changes)


def _print_services(
    catalog: Catalog, name: str | None, as_json: bool, address: tuple[str, int], store: str, must_exist: bool
) -> None:
    shown, report, why_not = views.only(catalog, name), None, ""
    try:
        report = ask_agent(address, store, ASK_SECONDS).of(name)
    except AgentUnavailable as error:
        why_not = str(error)
    is_known = bool(shown.services or shown.problems or (report and report.knows(name or "")))
    if must_exist and name is not None and not is_known:
        raise UsageError(f"there is no service {name!r} (`discovery services` lists them)")
    on_this_node = report.problems if report else ()
    if as_json:
        agent = views.agent_document(report, why_not)
        click.echo(json.dumps(views.services_document(shown, on_this_node) | {"agent": agent}))
        return
    console = Console()
    for table in views.services_tables(shown, on_this_node, report.node if report else ""):
        console.print(table)
    for line in views.node_lines(report, why_not):
        click.echo(line)


@click.command()
@click.option("--check", is_flag=True, help="have HAProxy check it")
@click.option("--diff", "as_diff", is_flag=True, help="show what differs from what runs on this node")
@with_settings(*COMMON, *PROXY)
@click.pass_context
def render(context: click.Context, /, check: bool, as_diff: bool, **_flags: object) -> None:
    """Print the HAProxy configuration as it would be written."""
    from discovery.haproxy import preview
    from discovery.roles import proxy_settings

    configuration = load_configuration(context)
    with open_configured(configuration) as store:
        catalog = read_catalog(store)
    settings = proxy_settings(configuration.settings)
    rendered = preview.render_files(settings, catalog)
    if check:
        preview.check_files(settings, rendered)
    shown = preview.without_secrets(rendered)
    if as_diff:
        running = preview.without_secrets(preview.running_files(settings))
        click.echo(views.files_difference(running, shown), nl=False)
    else:
        for filename, text in shown.items():
            click.echo(f"# ---- {filename}\n{text}", nl=False)


@click.command(name="set")
@click.argument("name")
@click.argument("field")
@click.argument("value")
@with_settings(*EVERYWHERE)
@click.pass_context
def set_(context: click.Context, /, name: str, field: str, value: str, **_flags: object) -> None:
    """Set a static entry or an option of service NAME; it stays until it is unset.

    FIELD is hosts/ID with an ip:port, scheme, host_port, or an option (docs/options.md tells them all). What
    is set here wins over what the service's instances say.
    """
    from discovery.options import OPTIONS, shown
    from discovery.static import entry

    configuration = load_configuration(context)
    key, text = entry(name, field, value)
    with open_configured(configuration) as store:
        store.put({key: text})
    click.echo(f"{key} = {shown(field, text) if field in OPTIONS else text}")


@click.command()
@click.argument("name")
@click.argument("fields", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="every key of the service, whoever wrote it")
@with_settings(*EVERYWHERE)
@click.pass_context
def unset(
    context: click.Context, /, name: str, fields: tuple[str, ...], everything: bool, **_flags: object
) -> None:
    """Remove static entries or options of service NAME."""
    from discovery.schema import service_prefix
    from discovery.static import key_of

    configuration = load_configuration(context)
    if everything == bool(fields):
        raise UsageError("name the fields to unset, or give --all to remove every key of the service")
    with open_configured(configuration) as store:
        present = store.snapshot(service_prefix(name)).entries
        keys = sorted(present) if everything else [key_of(name, field) for field in fields]
        missing = [key for key in keys if key not in present]
        if missing or not keys:
            raise UsageError(f"{missing[0] if missing else service_prefix(name)}: there is no such key")
        store.delete(keys)
    for key in keys:
        click.echo(f"{key} removed")


@click.command()
@click.argument("subject", metavar="CONTAINER|NAME|URL")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_settings(*COMMON, *PROXY, "docker.", "registrator.")
@click.pass_context
def explain(context: click.Context, /, subject: str, as_json: bool, **_flags: object) -> None:
    """Say why a container, a service or a URL is, or is not, registered, routed, answered.

    Run it on the node of the container, with the settings of its registrator.
    """
    from discovery.inquiry import inquire

    configuration = load_configuration(context)
    answer = inquire(subject, configuration.settings, lambda: open_configured(configuration))
    if as_json:
        click.echo(json.dumps(answer.document()))
    else:
        for line in answer.lines():
            click.echo(line)
    if not answer.explanations:
        if answer.unknown:
            sys.exit(FAILED)
        raise UsageError(f"there is no container and no service {subject!r}")


@click.command()
@click.argument("container")
@click.option(
    "--drain",
    "drain_seconds",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="how long requests under way are given once every edge has confirmed",
    metavar="SECONDS",
)
@with_settings(*COMMON, "docker.", "registrator.ttl_seconds")
@click.pass_context
def stop(context: click.Context, /, container: str, drain_seconds: float, **_flags: object) -> None:
    """Take CONTAINER out of rotation on every edge, and stop it then.

    Run it on the node of the container, with the settings of its agent.
    """
    from discovery.roles import stopper
    from discovery.stop import Times

    configuration = load_configuration(context)
    settings = configuration.settings
    with open_configured(configuration) as store:
        # An edge that is told of much tells of it three times in a TTL.
        times = Times(settings.registrator.ttl_seconds / 3 + 5, drain_seconds)
        stopper(settings, store, click.echo).run(container, times)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_settings(*ALL)
@click.pass_context
def config(context: click.Context, /, as_json: bool, **_flags: object) -> None:
    """List every setting, its value and where it came from."""
    configuration = load_configuration(context)
    if as_json:
        click.echo(views.configuration_json(configuration))
    else:
        Console().print(views.configuration_table(configuration))
