"""What a worker of HAProxy says of its servers, against what it should say. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from discovery.errors import ApplyError
from discovery.haproxy.layout import Layout, Section, Slot
from discovery.haproxy.model import Server
from discovery.haproxy.settings import join_address

NO_STATE = "1\n"
"""A server state file that says nothing; without a file HAProxy warns."""

_FORCED_MAINTENANCE = 0x01
"""The bit of srv_admin_state that ``set server … state maint`` sets; others may stay on one that serves."""

_SLOT = re.compile(r"s[1-9][0-9]*")

_CHECKED = 0x02 | 0x04
"""The bits of srv_check_state for a check that is configured, and enabled."""

_COLUMNS = (
    *("be_name", "srv_name", "srv_addr", "srv_op_state", "srv_admin_state", "srv_uweight"),
    *("srv_check_state", "srv_port"),
)


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server as a worker has it.

    ``is_up`` is what its checks say, True while none is through and without any; ``is_checked`` is whether
    there are any.
    """

    address: str
    weight: int
    in_maintenance: bool
    is_up: bool
    is_checked: bool = True


States = Mapping[str, Mapping[str, ServerState]]
"""By section and name of the server."""


def parse_states(text: str) -> States:
    """The answer to ``show servers state``. Raises ApplyError when it is none."""
    states: dict[str, dict[str, ServerState]] = {}
    for fields, at in _rows(text):
        backend, server, host, op_state, admin_state, weight, check_state, port = (
            fields[each] for each in at
        )
        states.setdefault(backend, {})[server] = ServerState(
            join_address(host, int(port)),
            int(weight),
            in_maintenance=bool(int(admin_state) & _FORCED_MAINTENANCE),
            is_up=op_state != "0",
            is_checked=int(check_state) & _CHECKED == _CHECKED,
        )
    return states


def misfits(sections: Iterable[Section], states: States) -> tuple[str, ...]:
    """The names of those sections whose servers are not as they should be."""
    return tuple(each.name for each in sections if not _fits(each, states.get(each.name, {})))


def observed(layout: Layout, names: Iterable[str], states: States) -> Layout:
    """The layout with what is really there in these sections, for planning what is left to do."""
    seen = dict(layout.sections)
    for name in names:
        section = layout.sections[name]
        slots = tuple(sorted(_slots(section, states.get(name, {})), key=lambda slot: slot.number))
        seen[name] = replace(section, slots=slots, is_complete=False)
    return replace(layout, sections=seen)


def has_strangers(states: Mapping[str, ServerState]) -> bool:
    """Whether a server of a section serves that is none of ours by its name; only a reload rids us of it."""
    return any(not _SLOT.fullmatch(name) and not state.in_maintenance for name, state in states.items())


def carry_over(text: str, before: Layout | None, after: Layout) -> str:
    """The server state file for a worker with layout ``after``, from what the worker before says.

    A service may change its section and an instance its slot. What moved to another address begins anew:
    HAProxy would give a server the *port* that the file says, whatever its configuration says.
    """
    header = next((line for line in text.splitlines() if line.startswith("# ")), None)
    if header is None:
        return NO_STATE
    services = {place: service for service, place in before.places.items()} if before else {}
    lines = []
    for fields, (backend_at, server_at, host_at, _, admin_at, _, _, port_at) in _rows(text):
        if int(fields[admin_at]) & _FORCED_MAINTENANCE:
            continue  # vacant, and not to be taken for another slot's instance that was there before
        section = fields[backend_at]
        place = after.section_of(services.get(section, section.removeprefix("service:")))
        address = join_address(fields[host_at], int(fields[port_at]))
        slot = place.slot_at(address) if place else None
        if place is not None and slot is not None:
            fields[backend_at], fields[server_at] = place.name, slot.name
            lines.append(" ".join(fields))
    return "\n".join(("1", header, *lines)) + "\n"


def _rows(text: str) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """The fields of every row, and where in them the columns are that we know."""
    lines = iter(text.splitlines())
    header = next((line for line in lines if line.startswith("# ")), "")
    columns = {name: index for index, name in enumerate(header.removeprefix("# ").split())}
    if not columns.keys() >= set(_COLUMNS):
        raise ApplyError(f"HAProxy answered 'show servers state' with {text[:200]!r}")
    at = tuple(columns[name] for name in _COLUMNS)
    for line in lines:
        fields = line.split()
        if len(fields) == len(columns):
            yield fields, at


def _fits(section: Section, states: Mapping[str, ServerState]) -> bool:
    wanted = {slot.name: slot.server for slot in section.slots}
    for name, server in wanted.items():
        state = states.get(name)
        if server is None:
            if state is not None and not state.in_maintenance:
                return False
        elif (
            state is None
            or state.in_maintenance
            or (state.address, state.weight) != (server.address, server.weight)
        ):
            return False
    return all(state.in_maintenance for name, state in states.items() if name not in wanted)


def _slots(section: Section, states: Mapping[str, ServerState]) -> Iterator[Slot]:
    ids = {slot.name: slot.server.id for slot in section.slots if slot.server is not None}
    for name, state in states.items():
        # Servers of a user's own template have names of their own, and are left alone.
        if _SLOT.fullmatch(name):
            server = Server(ids.get(name, ""), state.address, state.weight)
            yield Slot(int(name[1:]), None if state.in_maintenance else server)
