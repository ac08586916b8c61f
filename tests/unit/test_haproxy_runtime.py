"""What HAProxy's answers mean."""

import pytest

from discovery.errors import ApplyError
from discovery.haproxy.runtime import Processes, alerts, parse_processes

SHOW_PROC = """\
#<PID>          <type>          <reloads>       <uptime>        <version>
1162            master          5 [failed: 1]   0d00h02m07s     2.6.12-1+deb12u4
# workers
1271            worker          1               0d00h00m00s     2.6.12-1+deb12u4
# old workers
1233            worker          3               0d00h00m43s     2.6.12-1+deb12u4
# programs

"""


def test_processes() -> None:
    assert parse_processes(SHOW_PROC) == Processes(1162, "2.6.12-1+deb12u4", 5, 1, (1271,), (1233,))


def test_processes_of_a_version_that_does_not_count_failures() -> None:
    assert parse_processes(SHOW_PROC.replace(" [failed: 1]", "")).failed == 0


@pytest.mark.parametrize("text", ["", "Permission denied\n"])
def test_no_answer_is_not_no_processes(text: str) -> None:
    with pytest.raises(ApplyError):
        parse_processes(text)


def test_alerts_are_what_matters() -> None:
    text = (
        "[NOTICE]   (1) : haproxy version is 2.6\n"
        "[ALERT]    (1) : config : parsing [/x/haproxy.cfg:12] : unknown keyword 'bnid'\n"
        "[ALERT]    (1) : config : Error(s) found in configuration file : /x/haproxy.cfg\n"
        "[ALERT]    (1) : config : Fatal errors found in configuration.\n"
    )
    assert alerts(text) == "config : parsing [/x/haproxy.cfg:12] : unknown keyword 'bnid'"
    assert alerts("no alert at all") == "no alert at all"
