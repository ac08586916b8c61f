"""The commands of discovery: here and in `cli_once` is the only place that exits or prints for people.

Here are those that run until they are stopped; `cli_once` has those that do one thing and end.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from discovery import __version__, cli_once
from discovery.cli_settings import (
    ALL,
    COMMON,
    ENGINE,
    PROXY,
    load_configuration,
    open_configured,
    with_settings,
)
from discovery.config import SETTINGS, Setting
from discovery.errors import ConfigError, DiscoveryError, SchemaError, UsageError
from discovery.gliderlabs import store_url, translate

FAILED, WRONG_USAGE = cli_once.FAILED, 2


# ---- commands ---------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="discovery")
@with_settings("state_dir", "store.url", "log.")
def cli(**_flags: object) -> None:
    """Service discovery and edge routing for containers on a handful to a few hundred hosts.

    Start with `discovery agent` on every node. A setting may be given as a flag, as DISCOVERY_* in the
    environment, or in the TOML file that --config names, in this order of precedence.
    """


def _run_role(context: click.Context, /, role: str | None) -> None:
    """Run one role alone, or for None those of the settings."""
    from discovery.agent import run_agent
    from discovery.notify import take_notifier

    configuration = load_configuration(context)
    notifier = take_notifier(os.environ, os.getpid())
    wanted: tuple[str, ...] | None = None if role is None else (role,)
    # Not by the file, which several processes of one node may share: only one can have the address.
    if wanted and configuration.origins["status.listen"].startswith(("flag", "environment")):
        wanted = (*wanted, "status")
    with open_configured(configuration) as store:
        run_agent(configuration, store, wanted, notifier)


@cli.command()
@with_settings(*ALL)
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
@with_settings(*COMMON, "docker.", "registrator.", "status.")
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
@with_settings(*COMMON, *PROXY, "registrator.ttl_seconds", "status.")
@click.pass_context
def proxy(context: click.Context, /, **_flags: object) -> None:
    """Run the edge alone: HAProxy as the store says. Or tell the edge that runs on this node something."""
    if context.invoked_subcommand is None:
        _run_role(context, "proxy")


@cli.command()
@with_settings(*COMMON, *ENGINE, "dns.", "registrator.ttl_seconds", "status.")
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
@with_settings(*COMMON, "registrator.ttl_seconds")
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

    configuration = load_configuration(context)
    notifier = take_notifier(os.environ, os.getpid())
    with open_configured(configuration) as store:
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


proxy.add_command(cli_once.accept)
for _command in (
    cli_once.services,
    cli_once.render,
    cli_once.set_,
    cli_once.unset,
    cli_once.explain,
    cli_once.stop,
    cli_once.config,
):
    cli.add_command(_command)


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
