"""The conventions of gliderlabs' registrator, a table of cases for each rule."""

from dataclasses import replace

import pytest

from discovery.catalog import Attributes
from discovery.options import OPTIONS, one_of
from discovery.schema import parse_name
from discovery.sources.container import Binding, Port, read_container
from discovery.sources.docker import image_name, register, register_all
from discovery.sources.options import EXTRA_CHARACTERS, MOST_EXTRA, read_options
from discovery.sources.words import read_words
from discovery.tags import split_tags
from tests.unit.inspected import ALL, INTERNAL, NODE, container, document, only, registered


def test_everything_that_is_registered() -> None:
    words = ["SERVICE_HOST_PORT=9000", "SERVICE_WEIGHT=7", "SERVICE_REGION=eu"]
    found = only(register(container("environment_and_labels", *words), ALL, NODE))
    assert found.service == "from-label"
    assert found.instance.id == "n1:environment_and_labels:80"
    assert found.instance.attributes == Attributes(
        scheme="tcp",
        host_port=9000,
        weight=7,
        node="n1",
        container="environment_and_labels",
        image="busybox:local",
        tags=("c",),
        extra={"region": "eu"},
    )


# ---- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "labels", "general", "by_port"),
    [
        (["SERVICE_NAME=a"], {}, {"name": "a"}, {}),
        (["SERVICE_NAME=a"], {"SERVICE_NAME": "b"}, {"name": "b"}, {}),
        # A label wins over a variable of the same name, not over one that is more specific.
        (["SERVICE_80_NAME=a"], {"SERVICE_NAME": "b"}, {"name": "b"}, {80: {"name": "a"}}),
        (["SERVICE_80_NAME=a"], {"SERVICE_80_NAME": "b"}, {}, {80: {"name": "b"}}),
        (["SERVICE_80_CHECK_HTTP=/x"], {}, {}, {80: {"check_http": "/x"}}),
        (["SERVICE_Name=a", "service_name=b", "xSERVICE_NAME=c"], {}, {"name": "a"}, {}),
        (["SERVICE_NAME=a=b"], {}, {"name": "a=b"}, {}),
        (["SERVICE_NAME"], {}, {}, {}),
        (["SERVICE_NAME="], {}, {"name": ""}, {}),
        (["SERVICE_80=a", "SERVICE_=b"], {}, {"80": "a", "": "b"}, {}),
        (["SERVICE_0_NAME=a", "SERVICE_65536_NAME=b"], {}, {"0_name": "a", "65536_name": "b"}, {}),
        (["SERVICE_X_80_NAME=a"], {}, {"x_80_name": "a"}, {}),
    ],
)
def test_words(
    environment: list[str],
    labels: dict[str, str],
    general: dict[str, str],
    by_port: dict[int, dict[str, str]],
) -> None:
    found = read_words(environment, labels)
    assert (found.general, found.by_port) == (general, by_port)


def test_of_two_that_differ_in_case_the_same_wins_whatever_their_order() -> None:
    words = ["SERVICE_NAME=a", "SERVICE_name=b"]
    assert read_words(words, {}) == read_words(words[::-1], {})


# ---- SERVICE_NAME -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "services"),
    [
        (["SERVICE_NAME=web"], ["web-443", "web-80"]),
        (["SERVICE_80_NAME=web"], ["busybox-443", "web"]),
        (["SERVICE_NAME=web", "SERVICE_443_NAME=tls"], ["tls", "web-80"]),
        (["SERVICE_80_NAME=a", "SERVICE_443_NAME=b"], ["a", "b"]),
        (["SERVICE_80_NAME=web", "SERVICE_443_NAME=web"], ["web", "web"]),
        # Named by nothing, but named: the default without a number.
        (["SERVICE_80_NAME="], ["busybox", "busybox-443"]),
        (["SERVICE_81_NAME=web"], ["busybox-443", "busybox-80"]),
        (["service_name=web", "SERVICE_Name=Web_1"], ["web_1-443", "web_1-80"]),
        (["SERVICE_NAME=Web.App!"], ["web-app-443", "web-app-80"]),
        ([f"SERVICE_NAME={'x' * 80}"], [f"{'x' * 59}-443", f"{'x' * 60}-80"]),
        (["SERVICE_NAME"], ["busybox-443", "busybox-80"]),
    ],
)
def test_names(words: list[str], services: list[str]) -> None:
    outcome = register(container("two_ports", *words), ALL, NODE)
    assert not outcome.problems
    assert sorted(each.service for each in outcome.registrations) == services
    for service in services:
        parse_name(service)


@pytest.mark.parametrize(
    ("name", "words", "services"),
    [
        ("published_fixed", [], ["busybox"]),
        ("published_fixed", ["SERVICE_NAME=web"], ["web"]),
        ("published_twice", [], ["busybox"]),  # two bindings of one port
        ("two_networks", [], ["busybox"]),  # of two exposed ports one is published
        ("tcp_and_udp", [], ["busybox-53", "busybox-53"]),  # one name, two protocols
        ("tcp_and_udp", ["SERVICE_53_NAME=dns"], ["dns", "dns"]),
        ("udp_range", ["SERVICE_NAME=rtp"], ["rtp-70", "rtp-71", "rtp-72"]),
        ("registry_image", [], ["web_app"]),
    ],
)
def test_a_number_is_appended_when_several_ports_are_published(
    name: str, words: list[str], services: list[str]
) -> None:
    outcome = register(container(name, *words), ALL, NODE)
    assert sorted(each.service for each in outcome.registrations) == services


def test_a_published_port_that_nobody_reaches_is_one_of_several_all_the_same() -> None:
    found = container("two_ports")
    published = {**found.published, Port(443, "tcp"): (Binding("127.0.0.1", 8443),)}
    outcome = register(replace(found, published=published), ALL, NODE)
    assert registered(outcome) == {"busybox-80": "192.0.2.7:8010"}


def test_an_image_without_a_name_needs_one() -> None:
    found = document("published_fixed")
    found["Config"]["Image"] = found["Image"].removeprefix("sha256:")[:12]
    nameless = read_container(found)
    assert "SERVICE_NAME" in register(nameless, ALL, NODE).problems[0].reason
    named = replace(nameless, words=read_words(["SERVICE_NAME=web"], {}))
    assert only(register(named, ALL, NODE)).service == "web"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("redis", "redis"),
        ("redis:7", "redis"),
        ("gliderlabs/foobar:latest", "foobar"),
        ("localhost:5000/web", "web"),
        ("registry.example:5000/a/b/web:1.2@sha256:0123", "web"),
        ("web@sha256:0123", "web"),
    ],
)
def test_image_names(image: str, name: str) -> None:
    assert image_name(image) == name


def test_a_name_without_a_port_is_reported_unless_ignored() -> None:
    (problem,) = register(container("exposed_only", "SERVICE_NAME=web"), ALL, NODE).problems
    assert "publishes no port" in problem.reason
    (problem,) = register(container("no_ports", "SERVICE_NAME=web"), ALL, INTERNAL).problems
    assert "exposes no port" in problem.reason
    ignored = container("exposed_only", "SERVICE_NAME=web", "SERVICE_IGNORE=1")
    assert not register(ignored, ALL, NODE).problems


# ---- SERVICE_ID, _IGNORE, --explicit ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "ids"),
    [
        ("published_fixed", [], ["n1:published_fixed:80"]),
        ("published_fixed", ["SERVICE_ID=one"], ["one"]),
        ("tcp_and_udp", [], ["n1:tcp_and_udp:53", "n1:tcp_and_udp:53:udp"]),
        ("two_ports", ["SERVICE_80_ID=one"], ["one", "n1:two_ports:443"]),
        ("two_ports", ["SERVICE_ID=one"], ["one", "one"]),  # of two services
        ("published_fixed", ["SERVICE_ID="], ["n1:published_fixed:80"]),
    ],
)
def test_ids(name: str, words: list[str], ids: list[str]) -> None:
    found = register(container(name, *words), ALL, NODE)
    assert [each.instance.id for each in found.registrations] == ids


@pytest.mark.parametrize(
    ("words", "services"),
    [
        # An ignored port still counts as one of several, as it always did.
        (["SERVICE_443_IGNORE=true"], ["busybox-80"]),
        (["SERVICE_IGNORE=true"], []),
        (["SERVICE_IGNORE=false"], []),  # anything but empty
        (["SERVICE_IGNORE=true", "SERVICE_80_IGNORE="], ["busybox-80"]),
        (["SERVICE_IGNORE="], ["busybox-443", "busybox-80"]),
    ],
)
def test_ignored(words: list[str], services: list[str]) -> None:
    outcome = register(container("two_ports", *words), ALL, NODE)
    assert sorted(each.service for each in outcome.registrations) == services
    reasons = [each.reason for each in outcome.decisions if each.registration is None]
    assert reasons == ["SERVICE_IGNORE says so"] * (2 - len(services))


def test_explicit() -> None:
    explicit = replace(NODE, explicit=True)
    none = register(container("two_ports"), ALL, explicit)
    assert (none.registrations, none.problems) == ((), ())
    assert {each.reason for each in none.decisions} == {"it has no SERVICE_NAME, and docker.explicit is set"}
    assert len(register(container("two_ports", "SERVICE_NAME=a"), ALL, explicit).registrations) == 2
    assert registered(register(container("two_ports", "SERVICE_80_NAME=a"), ALL, explicit)) == {
        "a": "192.0.2.7:8010"
    }


def test_one_id_goes_to_the_older_container() -> None:
    old = container("published_fixed", "SERVICE_ID=one", created_us=1)
    new = container("published_twice", "SERVICE_ID=one", created_us=2)
    outcome = register_all([new, old], ALL, NODE)
    assert registered(outcome) == {"busybox": "192.0.2.7:8000"}
    assert outcome.problems[0].subject == "container published_twice"
    taken = next(each for each in outcome.decisions if each.container == "published_twice")
    assert (taken.registration, taken.reason) == (None, "id one is taken by another port or container")


def test_one_id_of_tcp_and_udp_is_one_id() -> None:
    """`hosts` and `udp` share the attributes of an id."""
    outcome = register_all([container("tcp_and_udp", "SERVICE_ID=one")], ALL, NODE)
    assert registered(outcome) == {"busybox-53": "192.0.2.7:8030"}
    assert len(outcome.problems) == 1


# ---- SERVICE_TAGS, --tags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", ()),
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (",a,,b,", ("a", "b")),
        (r"a\,b,c", ("a,b", "c")),
        (r"/(;\,:-_)/", ("/(;,:-_)/",)),
    ],
)
def test_tags(text: str, tags: tuple[str, ...]) -> None:
    assert split_tags(text) == tags


@pytest.mark.parametrize(
    ("name", "words", "forced", "tags"),
    [
        ("published_fixed", [], (), [()]),
        ("published_fixed", ["SERVICE_TAGS=a"], ("all",), [("a", "all")]),
        ("published_fixed", ["SERVICE_TAGS=all"], ("all",), [("all",)]),
        ("two_ports", ["SERVICE_TAGS=a,b", "SERVICE_80_TAGS=c"], (), [("c",), ("a", "b")]),
        ("tcp_and_udp", ["SERVICE_TAGS=a"], ("all",), [("a", "all"), ("a", "all", "udp")]),
    ],
)
def test_tags_of_instances(
    name: str, words: list[str], forced: tuple[str, ...], tags: list[tuple[str, ...]]
) -> None:
    found = register(container(name, *words), ALL, replace(NODE, tags=forced)).registrations
    assert [each.instance.attributes.tags for each in found] == tags


# ---- udp --------------------------------------------------------------------------------------------


def test_what_an_edge_would_need_is_nothing_to_udp() -> None:
    words = ["SERVICE_SCHEME=tcp", "SERVICE_HOST_PORT=9000", "SERVICE_PATH=keep", "SERVICE_WEIGHT=3"]
    tcp, udp = register(container("tcp_and_udp", *words), ALL, NODE).registrations
    assert (tcp.instance.protocol, udp.instance.protocol) == ("tcp", "udp")
    assert (tcp.instance.attributes.scheme, tcp.instance.attributes.host_port) == ("tcp", 9000)
    assert tcp.instance.attributes.options == {"path": "keep"}
    attributes = udp.instance.attributes
    assert (attributes.scheme, attributes.host_port, attributes.options) == (None, None, {})
    assert attributes.weight == 3


# ---- bad words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("SERVICE_80_SCHEME=ftp", "unknown scheme"),
        ("SERVICE_80_HOST_PORT=99999", "SERVICE_HOST_PORT"),
        ("SERVICE_80_HOST_PORT=80\n  bind :1", "SERVICE_HOST_PORT"),
        ("SERVICE_80_ID=../x", "instance id"),
        ("SERVICE_80_NAME=/../", "no service name"),
        (f"SERVICE_80_TAGS={'x' * 5000}", "SERVICE_TAGS"),
    ],
)
def test_a_bad_word_costs_its_own_port_only(word: str, reason: str) -> None:
    outcome = register(container("two_ports", word), ALL, NODE)
    assert registered(outcome) == {"busybox-443": "192.0.2.7:8011"}
    (problem,) = outcome.problems
    assert problem.subject == "container two_ports port 80"
    assert reason in problem.reason


@pytest.mark.parametrize("word", ["SERVICE_PATH=sideways", "SERVICE_WEIGHT=257", "SERVICE_WEIGHT=-1"])
def test_what_the_port_can_do_without_costs_only_itself(word: str) -> None:
    outcome = register(container("published_fixed", word), ALL, NODE)
    (found,) = outcome.registrations
    assert (found.instance.attributes.options, found.instance.attributes.weight) == ({}, None)
    (problem,) = outcome.problems
    assert problem.subject == f"container published_fixed port 80, {word.partition('=')[0]}"


# ---- options and the rest ---------------------------------------------------------------------------

KNOWN = {
    name: replace(OPTIONS["path"], name=name, parse=one_of(*values))
    for name, values in {
        "path": ["keep"],
        "allow": ["10.0.0.0/8"],
        "balance": ["first"],
        "check": ["tcp"],
        "weight": ["9"],
    }.items()
}


@pytest.mark.parametrize(
    ("words", "derived", "options", "extra", "problems"),
    [
        ({"path": "keep"}, {}, {"path": "keep"}, {}, []),
        ({"path": " keep "}, {}, {"path": "keep"}, {}, []),
        ({"path": ""}, {}, {}, {}, []),
        ({}, {"check": "tcp"}, {"check": "tcp"}, {}, []),
        ({"balance": "first"}, {"balance": "x"}, {"balance": "first"}, {}, []),
        ({}, {"unknown": "x"}, {}, {}, []),
        ({"path": "x"}, {}, {}, {}, ["SERVICE_PATH"]),
        # An option of the edges it may be, but its weight is the instance's.
        ({"weight": "9"}, {}, {}, {}, []),
        ({"region": "eu", "a.b": "c"}, {}, {}, {"region": "eu", "a.b": "c"}, []),
        (
            {"name": "a", "id": "b", "tags": "c", "ignore": "", "scheme": "d", "host_port": "e"},
            {},
            {},
            {},
            [],
        ),
        ({"check_http": "/", "check_ttl": "3"}, {}, {}, {}, []),
        ({"balanc": "first"}, {}, {}, {"balanc": "first"}, ["SERVICE_BALANC"]),
        ({"nmae": "x"}, {}, {}, {"nmae": "x"}, ["SERVICE_NMAE"]),
        ({"region": ""}, {}, {}, {}, []),
        ({"": "x", "ü": "x", "x y": "x"}, {}, {}, {}, []),
        ({"x": "y" * (EXTRA_CHARACTERS + 1)}, {}, {}, {}, ["SERVICE_X"]),
        ({"x": "y" * EXTRA_CHARACTERS}, {}, {}, {"x": "y" * EXTRA_CHARACTERS}, []),
    ],
)
def test_options(
    words: dict[str, str],
    derived: dict[str, str],
    options: dict[str, str],
    extra: dict[str, str],
    problems: list[str],
) -> None:
    said = read_options(words, derived, KNOWN)
    assert (said.options, said.extra) == (options, extra)
    assert [word for word, _ in said.problems] == problems


@pytest.mark.parametrize(
    "name",
    [
        "db_password",
        "passwd",
        "secret",
        "client_secret_1",
        "api_key",
        "apikey",
        "key",
        "auth",
        "token",
        "PRIVATE_x",
    ],
)
def test_a_secret_by_name_is_never_extra(name: str) -> None:
    said = read_options({name.lower(): "hunter2"}, {}, KNOWN)
    assert not said.extra
    assert "hunter2" not in repr(said)


@pytest.mark.parametrize("word", ["SERVICE_AUTH=alice:s3cret", "SERVICE_AUTH=", "SERVICE_ALLOW=10.0.0.0/80"])
def test_a_bad_guard_lets_nobody_in(word: str) -> None:
    outcome = register(container("published_fixed", word), ALL, NODE)
    name = word.partition("=")[0]
    options = outcome.registrations[0].instance.attributes.options
    assert options == {name.removeprefix("SERVICE_").lower(): "nobody"}
    assert outcome.problems[0].subject.endswith(name)
    assert "s3cret" not in str(outcome)


def test_extra_has_a_bound() -> None:
    said = read_options({f"x{number}": "y" for number in range(MOST_EXTRA + 3)}, {}, KNOWN)
    assert len(said.extra) == MOST_EXTRA
    assert len(said.problems) == 3
