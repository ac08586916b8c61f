"""Programs that look names up by a C library, glibc or musl, and see a resolv.conf of their own."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.need import need

MUSL = Path("/lib/ld-musl-x86_64.so.1")
CRT1 = Path("/usr/lib/x86_64-linux-gnu/crt1.o")


def musl_lookup(directory: Path) -> Path:
    """A program that looks a name up with musl: linked straight to its library, no musl compiler needed."""
    if not (MUSL.exists() and CRT1.exists()):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("musl or libc6-dev is not installed")
    program = directory / "lookup"
    flags = [
        "-nostdlib",
        "-no-pie",
        "-fno-stack-protector",
        "-U_FORTIFY_SOURCE",
        f"-Wl,-dynamic-linker,{MUSL}",
    ]
    source = Path(__file__).with_name("lookup.c")
    subprocess.run([need("gcc"), *flags, "-o", program, CRT1, source, MUSL], check=True, timeout=60)
    return program


def resolve(
    server: str, lookup: list[str], name: str, directory: Path, options: str = ""
) -> tuple[set[str], float]:
    """The addresses that ``lookup`` finds when its resolver is ``server``, and the seconds it took."""
    began = time.monotonic()
    done = _with_resolver(server, directory, options, 'exec "$@"', *lookup, name)
    seconds = time.monotonic() - began
    found = {line.split()[0] for line in done.stdout.splitlines()} if done.returncode == 0 else set()
    return found, seconds


def seconds_each(server: str, lookup: list[str], name: str, directory: Path, times: int) -> list[float]:
    """How long each of so many lookups took, from the program's start to its end; all must succeed."""
    loop = f'for _ in {{1..{times}}}; do b=$EPOCHREALTIME; "$@" >&2 || exit; echo "$b $EPOCHREALTIME"; done'
    done = _with_resolver(server, directory, "", loop, *lookup, name)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == times, done
    return [float(end) - float(begin) for begin, end in lines]


def _with_resolver(
    server: str, directory: Path, options: str, script: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    resolv_conf, nsswitch = directory / "resolv.conf", directory / "nsswitch.conf"
    resolv_conf.write_text(f"nameserver {server}\n{options}\n")
    nsswitch.write_text("hosts: dns\n")
    mounts = f"mount --bind {resolv_conf} /etc/resolv.conf"
    if Path("/etc/nsswitch.conf").exists():
        mounts += f" && mount --bind {nsswitch} /etc/nsswitch.conf"
    command = [need("unshare"), "--mount", "bash", "-c", f"{mounts} || exit 99\n{script}", "bash", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 99, done.stderr
    return done
