"""The key contract: what is read, what is refused, and that nothing bad reaches anyone raw."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.catalog import Attributes, Instance, Problem, Service
from discovery.decode import Decoded, decode_service
from discovery.errors import SchemaError
from discovery.schema import (
    VALUE_BYTES,
    encode_attributes,
    instance_keys,
    parse_address,
    parse_attributes,
    parse_id,
    parse_name,
    parse_port,
    parse_scheme,
    printable,
    shared_keys,
    split_key,
    to_name,
)
from discovery.stores.base import Entry

LONGEST_TEXT = 400
"""Bound on every text of a Problem; a subject is a key, whose name and id may be 63 and 200 long."""


def decode(
    values: dict[str, str], last: Service | None = None, *, created: dict[str, int] | None = None
) -> Decoded:
    """Decode ``web`` with these values; entries are created in their order unless ``created`` says."""
    entries = {}
    for revision, (rest, value) in enumerate(values.items(), 1):
        made = (created or {}).get(rest, revision)
        entries[rest] = Entry(f"/services/web/{rest}", value, made, made)
    return decode_service("web", entries, last)


def served(values: dict[str, str], last: Service | None = None) -> Service:
    service = decode(values, last).service
    assert service is not None
    return service


def only_problem(decoded: Decoded) -> Problem:
    assert len(decoded.problems) == 1, decoded.problems
    return decoded.problems[0]


def assert_fit_for_display(problem: Problem) -> None:
    for text in (problem.service or "", problem.subject, problem.reason):
        assert text.isprintable(), ascii(text)
        assert len(text) <= LONGEST_TEXT


# ---- names and ids ----------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    "a\nb",
    "web\n",
    'a"b',
    "a'b",
    "a/b",
    "..",
    ".",
    "a.b",
    "a b",
    "Web",
    "-web",
    "web-",
    "_web",
    "web_",
    "x" * 64,
    "x" * 300,
    "wéb",
    "web\x00",
    "web\u2028",
    "٣",
    "{{x}}",
    "%2e",
]


@pytest.mark.parametrize("name", ["a", "0", "web", "a-b_c", "x" * 63])
def test_good_name(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name_is_refused_and_its_service_left_out(name: str) -> None:
    with pytest.raises(SchemaError):
        parse_name(name)
    entry = Entry(f"/services/{name}/hosts/0", "192.0.2.1:80", 1, 1)
    decoded = decode_service(name, {"hosts/0": entry})
    assert decoded.service is None
    assert_fit_for_display(only_problem(decoded))


@given(st.text(max_size=400))
def test_made_name_is_a_name_or_an_error(text: str) -> None:
    try:
        name = to_name(text)
    except SchemaError as error:
        assert str(error).isprintable()
    else:
        assert parse_name(name) == name
        assert to_name(name) == name


@pytest.mark.parametrize("id_", ["0", "node1:web:8080", "a" * 200, "_x_", "a..b"])
def test_good_id(id_: str) -> None:
    assert parse_id(id_) == id_


@pytest.mark.parametrize(
    "id_", ["", "a b", "a\n", "a/b", "..", ".a", "a.", "a" * 201, "é", 'a"', "$x", "#", "a\\b", "٣"]
)
def test_instance_with_a_bad_id_is_left_out_alone(id_: str) -> None:
    with pytest.raises(SchemaError):
        parse_id(id_)
    decoded = decode({"hosts/good": "192.0.2.1:80", f"hosts/{id_}": "192.0.2.2:80"})
    assert decoded.service is not None
    assert [instance.id for instance in decoded.service.instances] == ["good"]
    assert_fit_for_display(only_problem(decoded))


# ---- addresses and ports ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:80", "192.0.2.1", 80),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("[2001:DB8:0:0:0:0:0:1]:1", "2001:db8::1", 1),
        ("[::1]:80", "::1", 80),
        # One host must not be two: the IPv4 address in IPv6 clothes is the IPv4 address.
        ("[::ffff:192.0.2.1]:80", "192.0.2.1", 80),
        ("[::ffff:c000:201]:80", "192.0.2.1", 80),
    ],
)
def test_good_address_is_canonical(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    instance = Instance("0", host, port)
    assert parse_address(instance.address) == (host, port)


BAD_ADDRESSES = [
    "",
    ":",
    ":80",
    "80",
    "192.0.2.1",
    "192.0.2.1:",
    "localhost:80",
    "web.example:80",
    "http://192.0.2.1:80",
    "192.0.2.1:80/path",
    "192.0.2.1:0",
    "192.0.2.1:65536",
    "192.0.2.1:-1",
    "192.0.2.1:+80",
    "192.0.2.1:8_0",
    "192.0.2.1:٨٠",
    "192.0.2.1:\uff18\uff10",
    "192.0.2.1: 80",
    "192.0.2.1 :80",
    "192.0.2.1:99999999999999999999",
    "192.0.2.256:80",
    "192.0.2:80",
    "3221225985:80",
    "0xc0.0.2.1:80",
    "192.0.2.01:80",
    "١٩٢.0.2.1:80",
    "[192.0.2.1]:80",
    "2001:db8::1:80",
    "[2001:db8::1]",
    "[2001:db8::1:80",
    "2001:db8::1]:80",
    "[[2001:db8::1]]:80",
    "[2001:db8:::1]:80",
    "[fe80::1%eth0]:80",
    "[fe80::1%25eth0]:80",
    "[::1%]:80",
    "0.0.0.0:80",
    "[::]:80",
    "[::ffff:0.0.0.0]:80",
    "[::ffff:224.0.0.1]:80",
    "224.0.0.1:80",
    "[ff02::1]:80",
    "192.0.2.1:80\nserver evil 192.0.2.2:80",
    "192.0.2.1:80 check",
    '192.0.2.1:80"',
    "192.0.2.1:80#",
    "192.0.2.1:80\x00",
    "a" * 300 + ":80",
]


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_instance_at_a_bad_address_is_left_out_alone(text: str) -> None:
    with pytest.raises(SchemaError):
        parse_address(text)
    decoded = decode({"hosts/0": text, "hosts/1": "192.0.2.9:80"})
    assert decoded.service is not None
    assert [instance.id for instance in decoded.service.instances] == ["1"]
    problem = only_problem(decoded)
    assert (problem.service, problem.subject) == ("web", "/services/web/hosts/0")
    assert problem.consequence == "left out"
    assert_fit_for_display(problem)


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "80.0", "0x50", "٨٠", "²", "8 0", "1e3", "9" * 5000]
)
def test_bad_port(text: str) -> None:
    with pytest.raises(SchemaError):
        parse_port(text)


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("65535", 65535), ("8080", 8080)])
def test_good_port(text: str, port: int) -> None:
    assert parse_port(text) == port


def test_ending_newline_of_echo_is_no_part_of_a_value() -> None:
    service = served({"scheme": "tcp\n", "host_port": " 8080\r\n", "hosts/0": "192.0.2.1:80\n"})
    assert (service.scheme, service.host_port) == ("tcp", 8080)
    assert service.instances == (Instance("0", "192.0.2.1", 80),)


# ---- attributes -------------------------------------------------------------------------------------

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20).map(printable)
attributes = st.builds(
    Attributes,
    scheme=st.sampled_from([None, "http", "tcp"]),
    host_port=st.none() | st.integers(1, 65535),
    weight=st.none() | st.integers(0, 256),
    node=st.none() | texts,
    container=st.none() | texts,
    image=st.none() | texts,
    tags=st.lists(texts, max_size=3).map(tuple),
    options=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
    draining=st.booleans(),
)


@given(attributes)
def test_attributes_are_read_as_they_were_written(given_attributes: Attributes) -> None:
    assert parse_attributes(encode_attributes(given_attributes)) == given_attributes


def test_unknown_members_are_ignored_so_that_newer_writers_are_read() -> None:
    assert parse_attributes('{"colour": [1], "weight": 3, "node": null}') == Attributes(weight=3)


def test_plain_numbers_serve_as_texts() -> None:
    assert parse_attributes('{"tags": [1], "options": {"retries": 3}}') == Attributes(
        tags=("1",), options={"retries": "3"}
    )


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


BAD_ATTRIBUTES = [
    "",
    "x",
    "{",
    "[]",
    "null",
    "1",
    '"text"',
    "NaN",
    "\ufeff{}",
    '{"a": 1} {"b": 2}',
    '{"host_port": 0}',
    '{"host_port": 65536}',
    '{"host_port": -1}',
    '{"host_port": "8080"}',
    '{"host_port": 8080.0}',
    '{"host_port": true}',
    '{"host_port": NaN}',
    '{"host_port": 1e999}',
    '{"host_port": ' + "9" * 4000 + "}",
    '{"host_port": ' + "9" * 60_000 + "}",
    '{"host_port": []}',
    '{"scheme": "https"}',
    '{"scheme": ["http"]}',
    '{"scheme": "http\\n"}',
    '{"weight": -1}',
    '{"weight": 257}',
    '{"weight": true}',
    '{"weight": Infinity}',
    '{"node": 7}',
    '{"tags": "a"}',
    '{"tags": {}}',
    '{"tags": [["a"]]}',
    '{"tags": [null]}',
    '{"tags": [true]}',
    '{"options": []}',
    '{"options": {"path": null}}',
    '{"options": {"path": ["keep"]}}',
    '{"draining": "false"}',
    '{"draining": 1}',
    nested(30_000),
    '{"tags": ' + nested(30_000) + "}",
    '{"a":' * 10_000,
]


@pytest.mark.parametrize("text", BAD_ATTRIBUTES, ids=lambda text: text[:30])
def test_bad_attributes_are_left_out_and_the_instance_stays(text: str) -> None:
    decoded = decode({"hosts/0": "192.0.2.1:80", "attributes/0": text})
    assert decoded.service is not None
    assert decoded.service.instances == (Instance("0", "192.0.2.1", 80),)
    problem = only_problem(decoded)
    assert problem.subject == "/services/web/attributes/0"
    assert_fit_for_display(problem)


def test_attributes_nested_to_any_depth_are_no_error() -> None:
    """The depth at which a recursion limit strikes depends on the Python and on the caller's own depth."""
    for depth in [*range(850, 1010), 2_000, 5_000, 10_000, 20_000]:
        for text in (f'{{"tags": [{nested(depth)}]}}', f'{{"options": {{"path": {nested(depth)}}}}}'):
            assert decode({"hosts/0": "192.0.2.1:80", "attributes/0": text}).service is not None


def test_value_of_10_mb_is_refused_unread() -> None:
    text = '{"tags": ["' + "x" * 10_000_000 + '"]}'
    began = time.process_time()
    decoded = decode({"hosts/0": "192.0.2.1:80", "attributes/0": text})
    assert time.process_time() - began < 1
    assert decoded.service is not None
    assert "longer than" in only_problem(decoded).reason
    assert_fit_for_display(only_problem(decoded))


def test_length_is_counted_in_bytes() -> None:
    text = json.dumps({"node": "é" * (VALUE_BYTES // 2)}, ensure_ascii=False)
    assert "longer than" in only_problem(decode({"hosts/0": "192.0.2.1:80", "attributes/0": text})).reason


def test_bad_attributes_keep_the_last_good_ones() -> None:
    """Or a tcp service whose instance writes rubbish for a moment would be served as http."""
    good = {"hosts/0": "192.0.2.1:80", "attributes/0": '{"scheme": "tcp", "host_port": 8080}'}
    decoded = decode({**good, "attributes/0": "rubbish"}, served(good))
    assert decoded.service == served(good)
    assert only_problem(decoded).consequence == "kept at its last good value"


# ---- schemes and shared keys ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "https", "HTTP", "udp", "http tcp", "tcp\nmode http", "x" * 300])
def test_unknown_scheme_leaves_the_service_out_rather_than_guess(text: str) -> None:
    with pytest.raises(SchemaError):
        parse_scheme(text)
    decoded = decode({"scheme": text, "hosts/0": "192.0.2.1:80"})
    assert decoded.service is None
    assert_fit_for_display(only_problem(decoded))
    assert only_problem(decoded).consequence == "left out"


def test_unknown_scheme_keeps_the_last_good_one_and_follows_everything_else() -> None:
    last = served({"scheme": "tcp", "hosts/0": "192.0.2.1:80"})
    decoded = decode({"scheme": "ftp", "hosts/1": "192.0.2.2:80"}, last)
    assert decoded.service == Service("web", "tcp", None, (Instance("1", "192.0.2.2", 80),))
    assert only_problem(decoded).consequence == "kept at its last good value"


def test_bad_host_port_keeps_the_last_good_one() -> None:
    last = served({"host_port": "8080"})
    decoded = decode({"host_port": "99999"}, last)
    assert decoded.service == last
    assert decoded.claim is not None
    assert only_problem(decoded).consequence == "kept at its last good value"


def test_bad_host_port_without_a_last_one_claims_nothing() -> None:
    decoded = decode({"host_port": "99999", "hosts/0": "192.0.2.1:80"})
    assert decoded.service == Service("web", "http", None, (Instance("0", "192.0.2.1", 80),))
    assert decoded.claim is None
    assert only_problem(decoded).consequence == "left out"


def test_seed_keys_alone_are_a_service() -> None:
    assert served({"scheme": "tcp", "hosts/0": "192.0.2.1:80", "host_port": "5432"}) == Service(
        "web", "tcp", 5432, (Instance("0", "192.0.2.1", 80),)
    )
    assert served({"hosts/0": "192.0.2.1:80"}) == Service("web", instances=(Instance("0", "192.0.2.1", 80),))


@pytest.mark.parametrize(
    ("values", "service"),
    [
        ({}, None),
        ({"attributes/0": "{}"}, None),
        ({"scheme": "tcp"}, Service("web", "tcp")),
        ({"host_port": "80"}, Service("web", "http", 80)),
        ({"options/path": "keep"}, Service("web", options={"path": "keep"})),
        ({"hosts/0": "rubbish"}, Service("web")),
    ],
)
def test_service_without_instances(values: dict[str, str], service: Service | None) -> None:
    assert decode(values).service == service


def test_operator_then_key_then_newest_instance() -> None:
    values = {
        "hosts/old": "192.0.2.1:80",
        "attributes/old": '{"scheme": "http", "host_port": 1001, "options": {"path": "strip"}}',
        "hosts/new": "192.0.2.2:80",
        "attributes/new": '{"scheme": "tcp", "host_port": 1002, "options": {"path": "keep"}}',
    }
    decoded = decode(values)
    assert decoded.service is not None
    assert (decoded.service.scheme, decoded.service.host_port) == ("tcp", 1002)
    assert decoded.service.options == {"path": "keep"}
    assert {(p.subject, p.consequence) for p in decoded.problems} == {
        ("/services/web/scheme", "reported"),
        ("/services/web/host_port", "reported"),
    }

    values |= {"scheme": "http", "host_port": "1003"}
    service = served(values)
    assert (service.scheme, service.host_port) == ("http", 1003)

    values |= {"options/scheme": "tcp", "options/host_port": "1004", "options/path": "strip"}
    decoded = decode(values)
    assert decoded.service is not None
    assert (decoded.service.scheme, decoded.service.host_port) == ("tcp", 1004)
    assert decoded.service.options == {"path": "strip"}
    for problem in decoded.problems:
        assert_fit_for_display(problem)


def test_agreement_is_no_problem() -> None:
    instance = Instance("n1:web:80", "192.0.2.1", 80, Attributes(scheme="tcp", host_port=5432))
    keys = instance_keys("web", instance) | shared_keys("web", instance)
    decoded = decode({split_key(key)[1]: value for key, value in keys.items()})
    assert decoded.service == Service("web", "tcp", 5432, (instance,))
    assert decoded.problems == ()


def test_newest_is_told_by_the_time_of_creation_and_ties_by_id() -> None:
    values = {
        "hosts/a": "192.0.2.1:80",
        "attributes/a": '{"scheme": "tcp"}',
        "hosts/b": "192.0.2.2:80",
        "attributes/b": '{"scheme": "http"}',
    }
    assert (decode(values, created={"hosts/a": 9, "hosts/b": 5}).service or Service("")).scheme == "tcp"
    assert (decode(values, created={"hosts/a": 5, "hosts/b": 9}).service or Service("")).scheme == "http"
    assert (decode(values, created={"hosts/a": 5, "hosts/b": 5}).service or Service("")).scheme == "tcp"


def test_claim_is_as_old_as_the_first_to_make_it() -> None:
    """A key written again by a survivor, or by an operator, is no new claim."""
    values = {
        "hosts/n2": "192.0.2.2:80",
        "attributes/n2": '{"host_port": 8080}',
        "host_port": "8080",
        "options/host_port": "8080",
    }
    decoded = decode(
        values, created={"hosts/n2": 9, "attributes/n2": 9, "host_port": 20, "options/host_port": 30}
    )
    assert decoded.claim is not None
    assert decoded.claim.created == 9


@pytest.mark.parametrize("lost", ["n1", "n2"])
def test_loss_of_a_node_takes_neither_scheme_nor_host_port_away(lost: str) -> None:
    """Design 1.1: whichever node's keys expire, the shared ones with them, the rest speak for the service."""
    values: dict[str, str] = {}
    for number, node in enumerate(("n1", "n2"), 1):
        instance = Instance(f"{node}:web:80", f"192.0.2.{number}", 80, Attributes("tcp", 5432, node=node))
        keys = instance_keys("web", instance) | shared_keys("web", instance)
        values |= {split_key(key)[1]: value for key, value in keys.items()}
    # On etcd v2 they expire one by one, in any order; hold at every step.
    for key in [key for key in values if key in ("scheme", "host_port") or f"/{lost}:" in key]:
        del values[key]
        service = served(values)
        assert (service.scheme, service.host_port) == ("tcp", 5432)
    assert len(served(values).instances) == 1


# ---- options and stray keys -------------------------------------------------------------------------


def test_bad_option_of_an_operator_keeps_the_last_good_one() -> None:
    last = served({"hosts/0": "192.0.2.1:80", "options/path": "keep"})
    decoded = decode({"hosts/0": "192.0.2.1:80", "options/path": "rubbish"}, last)
    assert decoded.service == last
    assert only_problem(decoded).consequence == "kept at its last good value"


@pytest.mark.parametrize("option", ["pth", "path/x", "", "a\nb", "x" * 300, "PATH"])
def test_unknown_option_is_left_out(option: str) -> None:
    decoded = decode({"hosts/0": "192.0.2.1:80", f"options/{option}": "keep"})
    assert decoded.service == Service("web", instances=(Instance("0", "192.0.2.1", 80),))
    assert_fit_for_display(only_problem(decoded))


def test_a_bad_option_that_keeps_people_out_lets_nobody_in() -> None:
    """A predecessor, or an instance that says it well, is better than nobody."""
    bad, good = '{"options": {"allow": "rubbish"}}', '{"options": {"allow": "10.0.0.0/8"}}'
    nobody, some = {"allow": "nobody"}, {"allow": "10.0.0.0/8"}
    hosts = {"hosts/0": "192.0.2.1:80", "hosts/1": "192.0.2.1:81"}
    assert served({**hosts, "attributes/0": bad}).options == nobody
    assert served({**hosts, "options/allow": ""}).options == nobody
    assert served({**hosts, "attributes/0": good, "attributes/1": bad}).options == some
    assert served({**hosts, "attributes/0": bad, "attributes/1": good}).options == some
    assert served({**hosts, "attributes/0": good, "options/allow": "rubbish"}).options == some
    last = served({**hosts, "options/allow": "192.0.2.0/24"})
    assert served({**hosts, "attributes/0": good, "options/allow": "x"}, last).options == last.options


def test_unknown_option_names_the_nearest() -> None:
    assert "did you mean path?" in only_problem(decode({"scheme": "tcp", "options/pth": "keep"})).reason


@pytest.mark.parametrize("name", ["a\nb", "x" * 300, "\x1b[31m", "scheme"])
def test_bad_option_of_an_instance_is_reported_on_its_attributes(name: str) -> None:
    text = json.dumps({"options": {name: "x\n"}})
    decoded = decode({"hosts/0": "192.0.2.1:80", "attributes/0": text})
    assert decoded.service is not None
    assert decoded.service.options == {}
    assert only_problem(decoded).subject == "/services/web/attributes/0"
    assert_fit_for_display(only_problem(decoded))


@pytest.mark.parametrize(
    "rest", ["", "shceme", "hosts", "scheme/", "a\nb", "x" * 300, "\x1b]0;x\x07", "é\u202e"]
)
def test_stray_key_is_reported_and_touches_nothing(rest: str) -> None:
    decoded = decode({"scheme": "tcp", rest: "x"})
    assert decoded.service == Service("web", "tcp")
    assert_fit_for_display(only_problem(decoded))


def test_unreadable_value_is_quarantined_with_the_reason() -> None:
    entries = {
        "hosts/0": Entry("/services/web/hosts/0", "", 1, 1, error="permission\ndenied " + "x" * 500),
        "hosts/1": Entry("/services/web/hosts/1", "192.0.2.1:80", 1, 1),
    }
    decoded = decode_service("web", entries)
    assert decoded.service is not None
    assert [instance.id for instance in decoded.service.instances] == ["1"]
    assert "cannot be read" in only_problem(decoded).reason
    assert_fit_for_display(only_problem(decoded))


rests = st.one_of(
    st.sampled_from(["scheme", "host_port", "options/path", "options/scheme", "options/host_port"]),
    st.builds(
        "{}/{}".format,
        st.sampled_from(["hosts", "attributes", "options", ""]),
        st.text(max_size=12) | st.sampled_from(["0", "1"]),
    ),
    st.text(max_size=12),
)
rubbish = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["tcp", "http", "8080", "192.0.2.1:80", "[::1]:80", "keep", '{"scheme": "tcp"}']),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["scheme", "host_port", "tags", "options", "weight", "node", "draining"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=6,
    ).map(json.dumps),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(rests, rubbish, max_size=8), st.text(max_size=5) | st.just("web"))
def test_reader_never_fails_and_shows_nothing_raw(values: dict[str, str], name: str) -> None:
    entries = {rest: Entry(f"/services/{name}/{rest}", value, 1, 1) for rest, value in values.items()}
    decoded = decode_service(name, entries)
    for problem in decoded.problems:
        assert_fit_for_display(problem)
    if decoded.service is None:
        assert decoded.claim is None
        return
    assert parse_name(decoded.service.name) == name
    for instance in decoded.service.instances:
        assert parse_address(instance.address) == (instance.host, instance.port)
        for text in (instance.attributes.node, instance.attributes.image, *instance.attributes.tags):
            assert text is None or text.isprintable()
    assert (decoded.claim is None) == (decoded.service.host_port is None)


@given(st.text(max_size=300))
def test_printable_is_printable_bounded_and_stable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 100
    assert printable(shown) == shown
    if text.isprintable() and len(text) <= 100:
        assert shown == text
