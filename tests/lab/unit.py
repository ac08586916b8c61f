"""HAProxy as systemd runs it: by the unit of Debian's package and a drop-in, but without systemd."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.lab.haproxy import until

UNIT = Path("/lib/systemd/system/haproxy.service")

# What `systemctl VERB haproxy` does with such a unit: MAINPID is the master that runs, if one does. A process
# that ended and was not waited for has no command line any more.
SYSTEMCTL = """\
#!/bin/sh
set -e
[ "$2" = haproxy ]
export {environment}
MAINPID=$(cat "$PIDFILE" 2>/dev/null) || true
[ -n "$MAINPID" ] && [ -n "$(tr -d '\\0' 2>/dev/null < /proc/$MAINPID/cmdline)" ] || MAINPID=
case "$1" in
reload-or-restart) [ -n "$MAINPID" ] && reload=yes || reload= ;;
start) [ -z "$MAINPID" ] || exit 0; reload= ;;
reload) [ -n "$MAINPID" ] || exit 1; reload=yes ;;
*) exit 64 ;;
esac
if [ -n "$reload" ]; then
    {reload}
else
    {start} < /dev/null >> {log} 2>&1 &
fi
"""


class Unit:
    """The unit ``haproxy``, and ``bin``, a directory with a ``systemctl`` that knows it alone."""

    def __init__(self, binary: str, directory: Path, drop_in: str) -> None:
        """``drop_in`` is the text of a file in haproxy.service.d."""
        if not UNIT.exists():
            pytest.skip(f"there is no {UNIT}")
        text = UNIT.read_text() + drop_in
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.log = directory / "journal"
        self._pid_file = directory / "haproxy.pid"
        environment = dict(re.findall(r'"(\w+)=([^"]*)"', "\n".join(_lines(text, "Environment"))))
        environment["PIDFILE"] = str(self._pid_file)
        environment["EXTRAOPTS"] = f"-S {directory}/master.sock"
        script = SYSTEMCTL.format(
            environment=" ".join(f'{name}="{value}"' for name, value in environment.items()),
            reload="\n    ".join(_lines(text, "ExecReload")),
            start=_lines(text, "ExecStart")[-1],
            log=self.log,
        )
        systemctl = self.bin / "systemctl"
        systemctl.write_text(script.replace("/usr/sbin/haproxy", binary))
        systemctl.chmod(0o755)

    @property
    def master(self) -> int | None:
        """The process id of the master, if it ever ran."""
        try:
            return int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None

    def kill(self) -> None:
        """End the master at once, and with it its workers."""
        if self.master is not None:
            try:
                os.kill(self.master, signal.SIGKILL)
            except ProcessLookupError:
                return
            until(lambda: not _lives(self.master), "the master ended")


def _lines(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def _lives(pid: int | None) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
