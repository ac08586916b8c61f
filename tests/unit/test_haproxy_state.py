"""What a worker says of its servers, against what it should say."""

from dataclasses import replace

import pytest

from discovery.errors import ApplyError
from discovery.haproxy.layout import Layout, Slot, place
from discovery.haproxy.state import NO_STATE, ServerState, carry_over, misfits, observed, parse_states
from tests.unit.test_haproxy_plan import MEANS, model, planned, service, started

HEADER = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_check_state"
    " srv_port srv_x"
)


def states(*rows: str) -> str:
    """An answer to ``show servers state``: backend, server, address, op, admin, weight, port, maybe check."""
    lines = []
    for row in rows:
        backend, server, address, op, admin, weight, port, *check = row.split()
        lines.append(f"3 {backend} 1 {server} {address} {op} {admin} {weight} {(*check, '6')[0]} {port} -")
    return "\n".join(("1", HEADER, *lines, ""))


def test_states_are_read() -> None:
    text = states("service:web s1 10.0.0.1 2 0 1 80", "service:web s2 fd00::1 0 1 7 81 2")
    assert parse_states(text) == {
        "service:web": {
            "s1": ServerState("10.0.0.1:80", 1, in_maintenance=False, is_up=True),
            "s2": ServerState("[fd00::1]:81", 7, in_maintenance=True, is_up=False, is_checked=False),
        }
    }


@pytest.mark.parametrize("text", ["", "Unknown command\n", "1\n# some other columns\n"])
def test_no_answer_is_not_no_servers(text: str) -> None:
    with pytest.raises(ApplyError):
        parse_states(text)


def test_answers_one_after_the_other_are_one() -> None:
    both = states("a s1 10.0.0.1 2 0 1 80") + "\n" + states("b s1 10.0.0.2 2 0 1 80")
    assert parse_states(both).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ("service:web s1 10.0.0.1 2 0 1 80", True),
        ("service:web s1 10.0.0.1 0 0 1 80", True),  # down by its checks: that is its own affair
        ("service:web s1 10.0.0.1 2 4 1 80", True),  # once disabled in a configuration
        ("service:web s1 10.0.0.2 2 0 1 80", False),
        ("service:web s1 10.0.0.1 2 0 1 81", False),
        ("service:web s1 10.0.0.1 2 0 2 80", False),
        ("service:web s1 10.0.0.1 0 1 1 80", False),
        ("service:web s2 10.0.0.1 2 0 1 80", False),
        ("service:api s1 10.0.0.1 2 0 1 80", False),
    ],
)
def test_what_fits(row: str, fits: bool) -> None:
    layout = started(service("web", "10.0.0.1:80"))
    assert (misfits(layout.sections.values(), parse_states(states(row))) == ()) is fits


def test_a_vacant_slot_fits_in_maintenance_only() -> None:
    layout = planned(started(service("web", "10.0.0.1:80")), service("web")).layout
    section = layout.sections["service:web"]
    assert misfits([section], parse_states(states("service:web s1 10.0.0.1 0 1 1 80"))) == ()
    assert misfits([section], parse_states(states("service:web s1 10.0.0.1 2 0 1 80"))) == ("service:web",)


def test_a_server_too_many_is_no_fit_and_is_planned_away() -> None:
    web = service("web", "10.0.0.1:80")
    layout = started(web)
    found = parse_states(states("service:web s1 10.0.0.1 2 0 1 80", "service:web s2 10.0.0.9 2 0 1 80"))
    wrong = misfits(layout.sections.values(), found)
    assert wrong == ("service:web",)
    assert planned(observed(layout, wrong, found), web).commands == ("set server service:web/s2 state maint",)


def test_servers_of_a_users_own_template_are_left_alone() -> None:
    layout = started(service("web", "10.0.0.1:80"))
    found = parse_states(states("service:web mine 10.0.0.9 2 0 1 80"))
    seen = observed(layout, ["service:web"], found)
    assert seen.sections["service:web"].slots == ()


# ---- from one worker to the next --------------------------------------------------------------------


def kept(text: str, before: Layout | None, after: Layout) -> list[str]:
    """``section/server`` of the rows that are carried over."""
    lines = carry_over(text, before, after).splitlines()
    assert lines[:2] == ["1", HEADER]
    return [f"{line.split()[1]}/{line.split()[3]} {line.split()[5]}" for line in lines[2:]]


def test_state_is_kept_of_servers_that_did_not_move() -> None:
    before = started(service("web", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"))
    after = place(model(service("web", "10.0.0.1:80", "10.0.0.2:81", "10.0.0.3:80")), before=before)
    text = states(
        "service:web s1 10.0.0.1 0 0 1 80",
        "service:web s2 10.0.0.2 0 0 1 80",
        "service:web s3 10.0.0.3 2 0 1 80",
        "elsewhere s1 10.0.0.1 0 0 1 80",
    )
    assert kept(text, before, after) == ["service:web/s1 0", "service:web/s3 2"]


def test_state_moves_with_a_service_from_a_spare_section() -> None:
    before = planned(started(), service("web", "10.0.0.1:80")).layout
    assert before.places["web"] == "spare:http:1"
    after = place(model(service("web", "10.0.0.1:80")), before=before, spares=MEANS.spares)
    assert kept(states("spare:http:1 s1 10.0.0.1 0 0 1 80"), before, after) == ["service:web/s1 0"]


def test_a_vacant_slot_does_not_take_the_next_one_out() -> None:
    """The instance left slot 1 and came back in slot 2; the address is the same."""
    before = started(service("web", "10.0.0.1:80"))
    section = before.sections["service:web"]
    moved = replace(section, slots=(Slot(1), Slot(2, section.slots[0].server)))
    before = replace(before, sections={"service:web": moved})
    after = place(model(service("web", "10.0.0.1:80")), before=before)
    text = states("service:web s1 10.0.0.1 0 1 1 80", "service:web s2 10.0.0.1 2 0 1 80")
    assert kept(text, before, after) == ["service:web/s2 2"]


def test_without_the_former_layout_sections_are_known_by_their_names() -> None:
    after = started(service("web", "10.0.0.1:80"))
    assert kept(states("service:web s9 10.0.0.1 0 0 1 80"), None, after) == ["service:web/s1 0"]


@pytest.mark.parametrize("text", ["", "Unknown command\n"])
def test_an_unknown_form_of_state_is_no_state(text: str) -> None:
    assert carry_over(text, None, started()) == NO_STATE
