"""The commands of discovery: the only place that exits or prints for people."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console

from discovery import __version__, logs, views
from discovery.catalog import Catalog
from discovery.config import SETTINGS, Configuration, Setting, load
from discovery.errors import AgentUnavailable, ConfigError, DiscoveryError, SchemaError, UsageError
from discovery.gliderlabs import store_url, translate
from discovery.status.ask import ask_agent
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Store

FAILED, WRONG_USAGE = 1, 2
ASK_SECONDS = 1.0  # a person waits for it

F = TypeVar("F", bound=Callable[..., Any])

_EVERYWHERE = ("state_dir", "store.", "log.")
_COMMON = (*_EVERYWHERE, "node.")
_PROXY = ("proxy.",)
_ENGINE = ("docker.url", "docker.ca_file", "docker.cert_file", "docker.key_file")
_ALL = tuple(setting.key for setting in SETTINGS)


# ---- settings as options ----------------------------------------------------------------------------


def _with_settings(*prefixes: str) -> Callable[[F], F]:
    """Give a command the flags of all settings whose key begins so, and ``--config``."""

    def decorate(command: F) -> F:
        for setting in reversed(SETTINGS):
            if setting.key.startswith(prefixes):
                command = _option(setting)(command)
        return click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="TOML file with settings"
        )(command)

    return decorate


def _option(setting: Setting) -> Callable[[F], F]:
    text = f"{setting.field.description} [{setting.key}]"
    if setting.is_switch:
        return click.option(*setting.flags, _parameter(setting), is_flag=True, default=None, help=text)
    return click.option(*setting.flags, _parameter(setting), metavar="VALUE", help=text)


def _parameter(setting: Setting) -> str:
    return setting.key.replace(".", "__")


def _configuration(context: click.Context) -> Configuration:
    """Settings from all sources; a flag after the command wins over the same before it."""
    given: dict[str, Any] = {}
    each: click.Context | None = context
    while each is not None:
        given = {name: value for name, value in each.params.items() if value is not None} | given
        each = each.parent
    flags = {s.key: given[_parameter(s)] for s in SETTINGS if _parameter(s) in given}
    file = given.get("config_file") or os.environ.get("DISCOVERY_CONFIG")
    configuration = load(flags, os.environ, Path(file) if file else None)
    logs.configure(configuration.settings.log.level, configuration.settings.log.format)
    return configuration


@contextmanager
def _store(configuration: Configuration) -> Iterator[Store]:
    """The store of the settings, closed at the end."""
    settings = configuration.settings
    options = StoreOptions(
        timeout_seconds=settings.store.timeout_seconds,
        ca_file=settings.store.ca_file,
        cert_file=settings.store.cert_file,
        key_file=settings.store.key_file,
        username=settings.store.username,
        password=settings.store.password,
    )
    with closing(open_store(settings.store_url, options)) as store:
        yield store


def _catalog(store: Store) -> Catalog:
    from discovery.builder import CatalogBuilder
    from discovery.schema import SERVICES

    return CatalogBuilder().reset(store.snapshot(SERVICES))


# ---- commands ---------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="discovery")
@_with_settings("state_dir", "store.url", "log.")
def cli(**_flags: object) -> None:
    """Service discovery and edge routing for containers on a handful to a few hundred hosts.

    Start with `discovery agent` on every node. A setting may be given as a flag, as DISCOVERY_* in the
    environment, or in the TOML file that --config names, in this order of precedence.
    """


def _run_role(context: click.Context, /, role: str | None) -> None:
    """Run one role alone, or for None those of the settings."""
    from discovery.agent import run_agent
    from discovery.notify import take_notifier

    configuration = _configuration(context)
    notifier = take_notifier(os.environ, os.getpid())
    wanted: tuple[str, ...] | None = None if role is None else (role,)
    # Not by the file, which several processes of one node may share: only one can have the address.
    if wanted and configuration.origins["status.listen"].startswith(("flag", "environment")):
        wanted = (*wanted, "status")
    with _store(configuration) as store:
        run_agent(configuration, store, wanted, notifier)


@cli.command()
@_with_settings(*_ALL)
@click.pass_context
def agent(context: click.Context, /, **_flags: object) -> None:
    """Run every role on this node, in the foreground."""
    _run_role(context, None)


class _LikeGliderlabs(click.Command):
    """Understands the arguments of gliderlabs' registrator as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, translate(args))


@cli.command(cls=_LikeGliderlabs)
@click.argument("registry", required=False)
@_with_settings(*_COMMON, "docker.", "registrator.", "status.")
@click.pass_context
def registrator(context: click.Context, /, registry: str | None, **_flags: object) -> None:
    """Run the registrator alone: keep this engine's containers registered.

    The arguments of gliderlabs' registrator are understood: its flags, and a REGISTRY such as
    etcd://HOST:2379 in place of --store.
    """
    if registry is not None:
        context.params["store__url"] = store_url(registry, context.params.get("store__url"))
    _run_role(context, "registrator")


@cli.group(invoke_without_command=True)
@_with_settings(*_COMMON, *_PROXY, "registrator.ttl_seconds", "status.")
@click.pass_context
def proxy(context: click.Context, /, **_flags: object) -> None:
    """Run the edge alone: HAProxy as the store says. Or tell the edge that runs on this node something."""
    if context.invoked_subcommand is None:
        _run_role(context, "proxy")


@proxy.command()
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="how long the agent may take",
)
@_with_settings("state_dir", "log.")
@click.pass_context
def accept(context: click.Context, /, wait: float, **_flags: object) -> None:
    """Accept a mass loss: no longer serve the instances that vanished from the store all at once.

    They are held for a time, as long as HAProxy's checks find them living; this ends it, on this node.
    """
    from discovery.haproxy.accept import AcceptRequest, HeldFile

    directory = _configuration(context).settings.proxy_dir
    loss = HeldFile(directory).read()
    if loss is None:
        click.echo("nothing is held back")
        return
    for line in views.loss_lines(loss):
        click.echo(line)
    AcceptRequest(directory).hand_over(wait)
    click.echo("accepted: they are served no more")


@cli.command()
@_with_settings(*_COMMON, *_ENGINE, "dns.", "registrator.ttl_seconds", "status.")
@click.pass_context
def dns(context: click.Context, /, **_flags: object) -> None:
    """Run the resolver alone: answer the zone, forward the rest."""
    _run_role(context, "dns")


@cli.command()
@click.argument("name")
@click.argument("address")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--scheme", help="http or tcp", metavar="SCHEME")
@click.option("--host-port", help="port on which every edge serves it", metavar="PORT")
@click.option("--check", help="tcp or http:/PATH: announce only while this succeeds", metavar="CHECK")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="seconds between telling the edges of the end and the end",
    metavar="SECONDS",
)
@_with_settings(*_COMMON, "registrator.ttl_seconds")
@click.pass_context
def announce(
    context: click.Context, /, name: str, address: str, command: tuple[str, ...], **flags: Any
) -> None:
    """Announce ADDRESS (ip:port, or :port for this node's) as an instance of NAME while this runs.

    With a COMMAND after --, run it, announce it while it runs, and end with its exit status. On a signal the
    edges stop sending it requests first, for --drain seconds, and only then it gets the signal.
    """
    from discovery.announced import run_announced, run_announcement
    from discovery.notify import take_notifier
    from discovery.roles import announcer

    configuration = _configuration(context)
    notifier = take_notifier(os.environ, os.getpid())
    with _store(configuration) as store:
        announcement = announcer(
            configuration.settings,
            store,
            name,
            address,
            scheme=flags["scheme"],
            host_port=flags["host_port"],
            check=flags["check"],
        )
        drain_seconds = flags["drain"]
        if command:
            sys.exit(run_announced(command, announcement, drain_seconds=drain_seconds, notifier=notifier))
        run_announcement(announcement, drain_seconds=drain_seconds, notifier=notifier)


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--watch", is_flag=True, help="print again with every change, until interrupted")
@_with_settings(*_EVERYWHERE, "status.")
@click.pass_context
def services(
    context: click.Context, /, name: str | None, as_json: bool, watch: bool, **_flags: object
) -> None:
    """List what is served, and what is quarantined and why.

    The agent of this node is asked what of it could not be here; without one, only the store tells.
    """
    from discovery.roles import status_address

    configuration = _configuration(context)
    address = status_address(configuration.settings)
    with _store(configuration) as store:
        for catalog in _catalogs(store) if watch else iter([_catalog(store)]):
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


@cli.command()
@click.option("--check", is_flag=True, help="have HAProxy check it")
@click.option("--diff", "as_diff", is_flag=True, help="show what differs from what runs on this node")
@_with_settings(*_COMMON, *_PROXY)
@click.pass_context
def render(context: click.Context, /, check: bool, as_diff: bool, **_flags: object) -> None:
    """Print the HAProxy configuration as it would be written."""
    from discovery.haproxy import preview
    from discovery.roles import proxy_settings

    configuration = _configuration(context)
    with _store(configuration) as store:
        catalog = _catalog(store)
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


@cli.command(name="set")
@click.argument("name")
@click.argument("field")
@click.argument("value")
@_with_settings(*_EVERYWHERE)
@click.pass_context
def set_(context: click.Context, /, name: str, field: str, value: str, **_flags: object) -> None:
    """Set a static entry or an option of service NAME; it stays until it is unset.

    FIELD is hosts/ID with an ip:port, scheme, host_port, or an option (docs/options.md tells them all). What
    is set here wins over what the service's instances say.
    """
    from discovery.options import OPTIONS, shown
    from discovery.static import entry

    configuration = _configuration(context)
    key, text = entry(name, field, value)
    with _store(configuration) as store:
        store.put({key: text})
    click.echo(f"{key} = {shown(field, text) if field in OPTIONS else text}")


@cli.command()
@click.argument("name")
@click.argument("fields", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="every key of the service, whoever wrote it")
@_with_settings(*_EVERYWHERE)
@click.pass_context
def unset(
    context: click.Context, /, name: str, fields: tuple[str, ...], everything: bool, **_flags: object
) -> None:
    """Remove static entries or options of service NAME."""
    from discovery.schema import service_prefix
    from discovery.static import key_of

    configuration = _configuration(context)
    if everything == bool(fields):
        raise UsageError("name the fields to unset, or give --all to remove every key of the service")
    with _store(configuration) as store:
        present = store.snapshot(service_prefix(name)).entries
        keys = sorted(present) if everything else [key_of(name, field) for field in fields]
        missing = [key for key in keys if key not in present]
        if missing or not keys:
            raise UsageError(f"{missing[0] if missing else service_prefix(name)}: there is no such key")
        store.delete(keys)
    for key in keys:
        click.echo(f"{key} removed")


@cli.command()
@click.argument("subject", metavar="CONTAINER|NAME|URL")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@_with_settings(*_COMMON, *_PROXY, "docker.", "registrator.")
@click.pass_context
def explain(context: click.Context, /, subject: str, as_json: bool, **_flags: object) -> None:
    """Say why a container, a service or a URL is, or is not, registered, routed, answered.

    Run it on the node of the container, with the settings of its registrator.
    """
    from discovery.inquiry import inquire

    configuration = _configuration(context)
    answer = inquire(subject, configuration.settings, lambda: _store(configuration))
    if as_json:
        click.echo(json.dumps(answer.document()))
    else:
        for line in answer.lines():
            click.echo(line)
    if not answer.explanations:
        if answer.unknown:
            sys.exit(FAILED)
        raise UsageError(f"there is no container and no service {subject!r}")


@cli.command()
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
@_with_settings(*_COMMON, "docker.", "registrator.ttl_seconds")
@click.pass_context
def stop(context: click.Context, /, container: str, drain_seconds: float, **_flags: object) -> None:
    """Take CONTAINER out of rotation on every edge, and stop it then.

    Run it on the node of the container, with the settings of its agent.
    """
    from discovery.roles import stopper
    from discovery.stop import Times

    configuration = _configuration(context)
    settings = configuration.settings
    with _store(configuration) as store:
        # An edge that is told of much tells of it three times in a TTL.
        times = Times(settings.registrator.ttl_seconds / 3 + 5, drain_seconds)
        stopper(settings, store, click.echo).run(container, times)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@_with_settings(*_ALL)
@click.pass_context
def config(context: click.Context, /, as_json: bool, **_flags: object) -> None:
    """List every setting, its value and where it came from."""
    configuration = _configuration(context)
    if as_json:
        click.echo(views.configuration_json(configuration))
    else:
        Console().print(views.configuration_table(configuration))


# ---- the way out ------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or configuration."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(WRONG_USAGE)
    except BrokenPipeError:
        # Whoever read our output has enough of it; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except DiscoveryError as error:
        _complain(error)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError | SchemaError) else FAILED)
    sys.exit(0)


def _complain(error: DiscoveryError) -> None:
    setting = ""
    if isinstance(error, ConfigError):
        names: Mapping[str, Setting] = {s.key: s for s in SETTINGS}
        known = names.get(error.setting)
        setting = f" [{known.flag}, {known.environment}]" if known else ""
    click.echo(f"discovery: {error}{setting}", err=True)
