"""Containers → registrations, by the conventions of gliderlabs' registrator. Pure.

A container that serves registers one instance for each port that others can reach:

    SERVICE_NAME        the service; default the image's name without registry, tag and digest.
                        Of several ports each has its own, `name-<port>`, unless the port itself is named
    SERVICE_IGNORE      anything but empty: not registered
    SERVICE_ID          the instance's id; default `<node>:<container>:<port>`, of UDP `…:udp`
    SERVICE_TAGS        comma-separated; `\\,` is a comma. Of UDP there is the tag `udp` besides
    SERVICE_CHECK_X     what must be seen good first: checks.py
    SERVICE_SCHEME      http or tcp
    SERVICE_HOST_PORT   the port that every edge listens on for the service
    SERVICE_NETWORK     of several networks the one whose address is registered: reach.py
    SERVICE_WEIGHT      0 to 256
    SERVICE_<OPTION>    any of discovery.options; anything else is extra

each as environment variable or label, labels win; `SERVICE_<port>_X` is for one port, the container's, and
wins over `SERVICE_X`. A bad value costs its own port, or just itself where the port can do without it.

Where the rules say so, the words of nginx-proxy (virtual_host.py) and of compose count as well.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from discovery.catalog import Attributes, Consequence, Instance, Problem, Registration
from discovery.errors import SchemaError
from discovery.schema import VALUE_BYTES, encode_attributes, parse_id, parse_scheme, printable, to_name
from discovery.sources.checks import Check, read_check
from discovery.sources.container import Container, Port
from discovery.sources.options import read_host_port, read_options, read_weight, word_of
from discovery.sources.reach import Reach, Reached, parse_ip, reach
from discovery.sources.rules import Rules as Rules  # where others look for it
from discovery.sources.virtual_host import virtual_options, virtual_port
from discovery.tags import split_tags

NAME_CHARACTERS = 63


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one port of a container, and why, in words.

    ``registration`` is None when it is not registered. With a ``check`` it is to be registered only while
    that is good.
    """

    container_id: str
    container: str
    port: Port
    registration: Registration | None
    reason: str
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one container, or all, register, and what could not be. ``decisions`` are of all their ports."""

    registrations: tuple[Registration, ...] = ()
    problems: tuple[Problem, ...] = ()
    decisions: tuple[Decision, ...] = ()


def register_all(
    containers: Iterable[Container],
    running: Mapping[str, Container],
    rules: Rules,
    register_one: Callable[[Container, Mapping[str, Container], Rules], Outcome] | None = None,
) -> Outcome:
    """What these containers register, oldest first. ``running`` are all there are, by id.

    Where two claim one service and id, the older has it. ``register_one`` is ``register``, or knows what that
    said before.
    """
    register_one = register_one or register
    registrations: dict[tuple[str, str], Registration] = {}
    problems: list[Problem] = []
    decisions: list[Decision] = []
    for container in sorted(containers, key=lambda each: (each.created_us, each.id)):
        outcome = register_one(container, running, rules)
        problems += outcome.problems
        for decision in outcome.decisions:
            registration = decision.registration
            if registration is None:
                decisions.append(decision)
                continue
            key = (registration.service, registration.instance.id)
            if key in registrations:
                reason = f"id {registration.instance.id} is taken by another port or container"
                problems.append(Problem(registration.service, _subject(container), reason))
                decisions.append(replace(decision, registration=None, reason=reason, check=None))
            else:
                registrations[key] = registration
                decisions.append(decision)
    return Outcome(tuple(registrations.values()), tuple(problems), tuple(decisions))


def register(container: Container, running: Mapping[str, Container], rules: Rules) -> Outcome:
    """What one container registers. ``running`` finds the owner of a network that it shares."""
    if unready(container) is not None:
        return Outcome()
    if "nginx-proxy" not in rules.conventions:
        container = replace(container, words=replace(container.words, virtual={}))
    try:
        ports = reach(container, running, rules)
    except SchemaError as error:
        return Outcome(problems=(Problem(None, _subject(container), str(error)),))
    return _Registering(container, ports, rules).outcome()


def unready(container: Container) -> str | None:
    """Why a container serves nothing in its present state, None when it serves."""
    if container.status != "running":
        return f"it is {container.status}"
    if container.health not in (None, "healthy"):
        return f"its health check says {container.health}"
    return None


class _Registering:
    """One container; a class only for what the steps share."""

    def __init__(self, container: Container, ports: Reach, rules: Rules) -> None:
        self._container = container
        self._ports = ports
        self._rules = rules
        self._problems: list[Problem] = []
        # The conventions number all ports, whatever their protocol, whether they are ignored or not.
        several = sum(isinstance(found, Reached) or found.published for found in ports.values()) > 1
        self._several = several and "registrator" in rules.conventions
        self._virtual_port: int | None = None

    def outcome(self) -> Outcome:
        container = self._container
        reached = [port for port, found in self._ports.items() if isinstance(found, Reached)]
        try:
            self._virtual_port = virtual_port(container.words.virtual, reached)
        except SchemaError as error:
            self._problem(_subject(container), str(error))
        asked = any(isinstance(found, Reached) or found.asked for found in self._ports.values())
        if not asked and _wants_registration(container):
            self._problem(_subject(container), _no_port(self._rules))
        decisions = [self._decide(port) for port in self._ports]
        registrations = [each.registration for each in decisions if each.registration is not None]
        return Outcome(tuple(registrations), tuple(self._problems), tuple(decisions))

    def _decide(self, port: Port) -> Decision:
        found = self._ports[port]
        unwanted = self._unwanted(port)
        if unwanted is None and isinstance(found, Reached):
            try:
                return self._register(port, found)
            except SchemaError as error:
                reason = str(error)
                self._problem(_subject(self._container, port), reason)
        elif unwanted is None and not isinstance(found, Reached):
            reason = found.reason
            if found.asked:
                self._problem(_subject(self._container, port), reason)
        else:
            reason = unwanted or ""
        return Decision(self._container.id, self._container.name, port, None, reason)

    def _unwanted(self, port: Port) -> str | None:
        """Why nobody wants this port registered, None when somebody does."""
        words, rules = self._container.words.of(port.number), self._rules
        virtual = port == (self._virtual_port, "tcp")
        if port.protocol not in ("tcp", "udp"):
            return f"{port.protocol.upper()} is not registered"
        if words.get("ignore"):
            return "SERVICE_IGNORE says so"
        if "registrator" not in rules.conventions and not virtual:
            return "it is not the port of a VIRTUAL_HOST, and the registrator's own convention is off"
        if words.get("name") or virtual:
            return None
        if rules.explicit:
            return "it has no SERVICE_NAME, and docker.explicit is set"
        compose = self._container.words.compose
        if compose is not None and compose.one_off and _by_compose(rules):
            return "it is a one-off container of compose"
        return None

    def _register(self, port: Port, reached: Reached) -> Decision:
        """The registration of one port. SchemaError when it cannot be."""
        container, rules = self._container, self._rules
        words = container.words.of(port.number)
        service, subject = self._service(port, words), _subject(container, port)
        udp = port.protocol == "udp"
        udp_tag = ("udp",) if udp else ()
        derived: dict[str, str] = {}
        if port == (self._virtual_port, "tcp"):
            derived, bad = virtual_options(container.words.virtual, service)
            self._report(bad, service, subject)
        checked = read_check(
            words, container.id, reached, protocol=port.protocol, commands=rules.check_commands
        )
        self._report([(word_of(name), reason) for name, reason in checked.problems], service, subject)
        said = read_options({} if udp else words, {**derived, **checked.options})
        self._report(said.problems, service, subject)
        attributes = Attributes(
            scheme=None if udp else parse_scheme(words["scheme"].lower()) if words.get("scheme") else None,
            host_port=None if udp else read_host_port(words),
            weight=self._weight(words, service, subject),
            node=rules.node,
            container=container.name,
            image=container.image,
            tags=tuple(dict.fromkeys((*_tags(words), *rules.tags, *udp_tag))),
            options=said.options,
            extra=said.extra,
        )
        _check_size(attributes)
        default_id = f"{rules.node}:{container.name}:{port.number}" + (":udp" if udp else "")
        id_ = parse_id(words.get("id") or default_id)
        host = str(parse_ip(reached.host))
        instance = Instance(id_, host, reached.port, attributes, "udp" if udp else "tcp")
        reason = f"instance {id_} of service {service} at {instance.address}: {reached.how}"
        registration = Registration(service, instance)
        return Decision(container.id, container.name, port, registration, reason, checked.check)

    def _service(self, port: Port, words: Mapping[str, str]) -> str:
        named = "name" in self._container.words.by_port.get(port.number, {})
        suffix = f"-{port.number}" if self._several and not named else ""
        name = to_name(words.get("name") or self._default_name())
        return name[: NAME_CHARACTERS - len(suffix)].rstrip("-_") + suffix

    def _default_name(self) -> str:
        container, conventions = self._container, self._rules.conventions
        compose = container.words.compose
        if compose is not None and "compose" in conventions:
            return f"{compose.project}-{compose.service}"
        if compose is not None and "compose-service" in conventions:
            return compose.service
        if container.image.startswith("sha256:"):
            raise SchemaError("its image has no name, SERVICE_NAME must give one")
        return image_name(container.image)

    def _weight(self, words: Mapping[str, str], service: str, subject: str) -> int | None:
        try:
            return read_weight(words)
        except SchemaError as error:
            self._report([(word_of("weight"), str(error))], service, subject)
            return None

    # -- reporting

    def _report(self, problems: Iterable[tuple[str, str]], service: str, subject: str) -> None:
        """Words that do not count, each with the reason; the port is registered without them."""
        for word, reason in problems:
            self._problem(f"{subject}, {word}", reason, service)

    def _problem(
        self, subject: str, reason: str, service: str | None = None, consequence: Consequence = "left out"
    ) -> None:
        self._problems.append(Problem(service, subject, reason, consequence))


def image_name(image: str) -> str:
    """``registry:5000/team/web:1.2@sha256:…`` → ``web``."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def _tags(words: Mapping[str, str]) -> tuple[str, ...]:
    try:
        return split_tags(words.get("tags", ""))
    except SchemaError as error:
        raise SchemaError(f"SERVICE_TAGS: {error}") from None


def _check_size(attributes: Attributes) -> None:
    """SchemaError for more than readers take. Written out only where it could be: no character takes more
    than 12 bytes."""
    parts = (
        *attributes.tags,
        *attributes.options.values(),
        *attributes.extra.values(),
        attributes.image or "",
    )
    if sum(map(len, parts)) * 12 > VALUE_BYTES // 2 and len(encode_attributes(attributes)) > VALUE_BYTES:
        raise SchemaError(f"its words are more than the {VALUE_BYTES // 1024} KiB that a value may have")


def _by_compose(rules: Rules) -> bool:
    return bool(rules.conventions & {"compose", "compose-service"})


def _wants_registration(container: Container) -> bool:
    words = container.words
    named = [words.general, *words.by_port.values()]
    return not words.general.get("ignore") and any(each.get("name") for each in named)


def _no_port(rules: Rules) -> str:
    return "it has a SERVICE_NAME, but " + ("exposes no port" if rules.internal else "publishes no port")


def _subject(container: Container, port: Port | None = None) -> str:
    where = "" if port is None else f" port {port.number}" + ("/udp" if port.protocol == "udp" else "")
    return printable(f"container {container.name}{where}")
