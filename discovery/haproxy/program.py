"""The HAProxy program on this machine: where it is, which version, what its checks say of a configuration."""

import contextlib
import os
import pwd
import re
import resource
import shutil
from pathlib import Path
from typing import NamedTuple

import structlog

from discovery import commands
from discovery.errors import ApplyError, CommandError, ConfigError, ConfigRefused
from discovery.haproxy.render import Machine
from discovery.haproxy.runtime import alerts
from discovery.haproxy.settings import ProxySettings

log = structlog.get_logger(__name__)

OLDEST = (2, 6)
DESCRIPTORS = 200_000
"""Enough for 100,000 connections; HAProxy sizes its tables by it, and some machines allow a billion."""


class Program(NamedTuple):
    """``path`` is absolute, ``version`` as HAProxy prints it, such as ``2.6.12-1+deb12u4``."""

    path: Path
    version: str


def haproxy_version(binary: str) -> Program:
    """The program that ``binary``, a path or a name on the PATH, stands for.

    Raises ConfigError when there is none, it is no HAProxy, or it is too old.
    """
    path = shutil.which(binary)
    mend = "install the package haproxy, or name the program with --haproxy"
    if path is None:
        raise ConfigError("proxy.haproxy", f"there is no program {binary!r}", mend)
    try:
        answer = commands.run([path, "-v"], timeout_seconds=10)
    except CommandError as error:
        raise ConfigError("proxy.haproxy", str(error), mend) from error
    match = re.search(r"^HA-?Proxy version ((\d+)\.(\d+)\S*)", answer, re.MULTILINE)
    if match is None:
        raise ConfigError("proxy.haproxy", f"{path} is no HAProxy", mend)
    if (int(match[2]), int(match[3])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError("proxy.haproxy", f"{path} is version {match[1]}", f"{oldest} or later is needed")
    return Program(Path(path).absolute(), match[1])


def inspect_machine(settings: ProxySettings) -> Machine:
    """Whom HAProxy can become here, and how many files it may open.

    Raises the limit that it will inherit from this process, where we may.
    """
    descriptors = _raise_descriptor_limit(DESCRIPTORS)
    if os.geteuid() != 0:
        return Machine(None, None, descriptors)
    try:
        entry = pwd.getpwnam(settings.user)
    except KeyError:
        log.warning("haproxy_stays_root", reason=f"there is no user {settings.user}")
        return Machine(None, None, descriptors)
    return Machine(entry.pw_uid, entry.pw_gid, descriptors)


def _raise_descriptor_limit(wanted: int) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        # Every server needs one for its check: 20,000 servers do not fit into some machines' limit.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))
            hard = wanted
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)


def check(program: Program, config: Path, timeout_seconds: float) -> None:
    """Have HAProxy check a configuration. Raises ConfigRefused, ApplyError when it cannot tell."""
    try:
        commands.run([str(program.path), "-c", "-f", str(config)], timeout_seconds)
    except CommandError as error:
        message = str(error)
        if error.status is None:
            raise ApplyError(f"HAProxy cannot check the configuration: {message}") from error
        raise ConfigRefused(f"HAProxy refuses the configuration: {alerts(message)}", message) from error
