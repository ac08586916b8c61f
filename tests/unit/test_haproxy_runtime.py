"""What HAProxy's answers mean."""

import pytest

from discovery.catalog import Catalog, Instance, Service
from discovery.errors import ApplyError
from discovery.haproxy.model import build
from discovery.haproxy.runtime import NO_STATE, Processes, alerts, keep_state, parse_processes
from tests.unit.test_haproxy_model import settings

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


STATE = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_port
3 service:web 1 0 10.0.0.1 0 80
3 service:web 2 1 10.0.0.2 2 80
3 service:web 3 2 fd00::3 2 80
3 service:web 4 gone 10.0.0.4 2 80
4 service:api 1 0 10.0.0.1 2 80
5 elsewhere 1 0 10.0.0.1 2 80
"""


def test_state_is_kept_of_servers_that_did_not_move() -> None:
    web = Service(
        "web",
        instances=(
            Instance("0", "10.0.0.1", 80),
            Instance("1", "10.0.0.2", 8080),
            Instance("2", "fd00::3", 80),
        ),
    )
    api = Service("api", instances=(Instance("0", "10.0.0.9", 80),))
    model = build(Catalog(1, {"web": web, "api": api}), settings())
    kept = keep_state("\n" + STATE, model).splitlines()
    assert kept[:2] == STATE.splitlines()[:2]
    assert [line.split()[3] for line in kept[2:]] == ["0", "2"]


@pytest.mark.parametrize("text", ["", "Unknown command\n", "1\n# some other columns\n"])
def test_an_unknown_form_of_state_is_no_state(text: str) -> None:
    assert keep_state(text, build(Catalog(), settings())) == NO_STATE


def test_alerts_are_what_matters() -> None:
    text = (
        "[NOTICE]   (1) : haproxy version is 2.6\n"
        "[ALERT]    (1) : config : parsing [/x/haproxy.cfg:12] : unknown keyword 'bnid'\n"
        "[ALERT]    (1) : config : Error(s) found in configuration file : /x/haproxy.cfg\n"
        "[ALERT]    (1) : config : Fatal errors found in configuration.\n"
    )
    assert alerts(text) == "config : parsing [/x/haproxy.cfg:12] : unknown keyword 'bnid'"
    assert alerts("no alert at all") == "no alert at all"
