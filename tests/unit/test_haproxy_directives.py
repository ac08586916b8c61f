"""What each option becomes: one golden text for each, and what no text can break."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalog import Scheme, Service
from discovery.errors import SchemaError
from discovery.haproxy.directives import _LINES, _SERVER, Checks, directives, quote, quote_format
from discovery.options import ANY, OPTIONS, parse_option, shaping
from tests.unit.test_options import GOOD, SHA256

CHECKED = "check inter 2000ms fastinter 1000ms downinter 2000ms rise 2 fall 2"
POOL = "pool-purge-delay 5s pool-max-conn -1"
PAGE = (
    'http-request deny deny_status 403 content-type "text/plain; charset=utf-8" '
    'string "403: service web is not for this client\\n" hdr X-Content-Type-Options nosniff'
)
SNI = (
    "http-request set-var(txn.sni) 'req.fhdr(host),lower,field(1,:),regsub([.]$,)' "
    "if { req.fhdr(host) -m reg -i '^([a-z0-9_-]+[.])*[a-z][a-z0-9_-]*[.]?(:|$)' }"
)

GOLDEN: list[tuple[str, str, list[str], str]] = [
    ("balance", "leastconn", ["balance leastconn"], f"{CHECKED} {POOL}"),
    ("balance", "source", ["balance source", "hash-type consistent"], f"{CHECKED} {POOL}"),
    ("balance", "uri", ["balance uri", "hash-type consistent"], f"{CHECKED} {POOL}"),
    (
        "sticky",
        "cookie",
        [
            "cookie discovery_web insert indirect nocache httponly dynamic",
            "dynamic-cookie-key discovery:web",
        ],
        f"{CHECKED} {POOL}",
    ),
    ("maxconn", "5", [], f"{CHECKED} maxconn 5 {POOL}"),
    ("check", "tcp", [], f"{CHECKED} {POOL}"),
    ("check", "none", [], POOL),
    (
        "check",
        "http:/it's?$x",
        [
            "option httpchk",
            "http-check send meth GET uri '/it'\\''s?$x' ver HTTP/1.1 hdr Host web",
            "http-check expect status 200-399",
        ],
        f"{CHECKED} {POOL}",
    ),
    (
        "check_interval",
        "500ms",
        [],
        f"check inter 500ms fastinter 500ms downinter 500ms rise 2 fall 2 {POOL}",
    ),
    (
        "check_interval",
        "1m",
        [],
        f"check inter 60000ms fastinter 1000ms downinter 60000ms rise 2 fall 2 {POOL}",
    ),
    ("check_timeout", "1s", ["timeout check 1s"], f"{CHECKED} {POOL}"),
    ("check_rise", "5", [], f"{CHECKED.replace('rise 2', 'rise 5')} {POOL}"),
    ("check_fall", "5", [], f"{CHECKED.replace('fall 2', 'fall 5')} {POOL}"),
    ("timeout_connect", "2s", ["timeout connect 2s"], f"{CHECKED} {POOL}"),
    ("timeout_server", "2m", ["timeout server 2m"], f"{CHECKED} {POOL}"),
    ("timeout_tunnel", "2h", ["timeout tunnel 2h"], f"{CHECKED} {POOL}"),
    ("retries", "0", ["retries 0"], f"{CHECKED} {POOL}"),
    ("protocol", "http", [], f"{CHECKED} {POOL}"),
    ("protocol", "h2", [], f"{CHECKED} proto h2 {POOL}"),
    (
        "protocol",
        "https",
        ["http-request set-var(txn.sni) str(web)", SNI],
        f"{CHECKED} check-ssl check-sni web ssl verify none sni var(txn.sni) alpn http/1.1 {POOL}",
    ),
    ("proxy_protocol", "v1", [], f"{CHECKED} check-send-proxy send-proxy {POOL}"),
    ("proxy_protocol", "v2", [], f"{CHECKED} check-send-proxy send-proxy-v2 {POOL}"),
    (
        "request_headers",
        "X-A: 1|X-B: it's %[src]",
        ["http-request set-header X-A 1", "http-request set-header X-B 'it'\\''s %%[src]'"],
        f"{CHECKED} {POOL}",
    ),
    ("response_headers", "X-A: $B", ["http-response set-header X-A '$B'"], f"{CHECKED} {POOL}"),
    (
        "allow",
        "10.0.0.0/8,::1/128",
        ["acl allowed src 10.0.0.0/8 ::1/128", f"{PAGE} unless allowed"],
        f"{CHECKED} {POOL}",
    ),
    ("allow", "nobody", [PAGE], f"{CHECKED} {POOL}"),
    (
        "auth",
        f"al:{SHA256}",
        ["http-request auth realm web unless { http_auth(auth:web) }"],
        f"{CHECKED} {POOL}",
    ),
    ("auth", "nobody", [PAGE], f"{CHECKED} {POOL}"),
]


def service(scheme: Scheme = "http", /, **options: str) -> Service:
    return Service("web", scheme, options=options)


@pytest.mark.parametrize(("name", "text", "lines", "server"), GOLDEN)
def test_what_an_option_becomes(name: str, text: str, lines: list[str], server: str) -> None:
    made = directives(service(**{name: text}), Checks(2000))
    assert list(made.lines) == lines
    assert made.server == server
    users = ("userlist auth:web", f"    user al password '{SHA256}'")
    assert made.sections == (users if text == f"al:{SHA256}" else ())
    assert made.checked == (text != "none")
    assert made.after_add == ("enable dynamic-cookie backend" if name == "sticky" else "")


def test_every_option_of_the_section_has_a_golden_text_and_no_other_has_a_row() -> None:
    shape = set(shaping(dict.fromkeys(OPTIONS, "")))
    assert {name for name, *_ in GOLDEN} == shape
    assert _LINES.keys() | _SERVER.keys() | {"check_interval", "check_rise", "check_fall"} == shape


@pytest.mark.parametrize("name", ["path", "hosts", "redirect", "weight"])
def test_options_of_the_maps_leave_the_section_alone(name: str) -> None:
    text = next(canonical for option, _, canonical in GOOD if option == name)
    assert directives(service(**{name: text}), Checks(2000)) == directives(service(), Checks(2000))


def test_who_may_come_in_is_settled_first() -> None:
    options = {name: canonical for name, _, canonical in reversed(GOOD)}
    options |= {"allow": "10.0.0.0/8", "auth": f"al:{SHA256}"}
    lines = directives(service(**options), Checks(2000)).lines
    assert [line.split()[1] for line in lines[:3]] == ["allowed", "deny", "auth"]


def test_a_long_list_of_networks_is_several_lines() -> None:
    networks = [f"10.{n}.0.0/16" for n in range(40)]
    lines = directives(service(allow=",".join(networks)), None).lines
    assert max(len(line.split()) for line in lines[:-1]) < 64
    assert [word for line in lines[:-1] for word in line.split()[3:]] == networks


def test_tcp_has_neither_pages_nor_pools() -> None:
    assert directives(service("tcp"), Checks(2000)).server == CHECKED
    made = directives(service("tcp", allow="10.0.0.0/8", maxconn="3"), None)
    assert made.lines == ("acl allowed src 10.0.0.0/8", "tcp-request content reject unless allowed")
    assert (made.server, made.checked) == ("maxconn 3", False)


def test_options_of_http_are_without_effect_on_tcp_but_what_keeps_out_does() -> None:
    made = directives(
        service("tcp", protocol="h2", sticky="cookie", balance="uri", request_headers="A: b"), None
    )
    assert (made.sections, made.lines, made.server, made.after_add) == ((), (), "", "")
    made = directives(service("tcp", auth=f"al:{SHA256}", allow="10.0.0.0/8"), None)
    assert (made.sections, made.lines) == ((), ("tcp-request content reject",))


def test_an_interval_of_its_own_is_stretched_as_well() -> None:
    assert "inter 12000ms " in directives(service(check_interval="3s"), Checks(8000, stretch=4)).server
    assert "inter 8000ms " in directives(service(), Checks(8000, stretch=4)).server


def test_without_checks_nobody_is_checked() -> None:
    options = {"check": "http:/x", "check_interval": "1s", "proxy_protocol": "v2", "protocol": "https"}
    made = directives(service(**options), None)
    assert "check" not in made.server
    assert not made.checked


@pytest.mark.parametrize(
    "bad",
    [
        Service("we b"),
        service(balance="random\n  server evil 1.2.3.4:80"),
        service(request_headers="X-A: b\nX"),
        service(check="http:/x\ty"),
        service(unknown="x"),
    ],
)
def test_what_keeps_no_contract_is_refused_again(bad: Service) -> None:
    with pytest.raises(SchemaError):
        directives(bad, Checks(2000))


# ---- escaping ---------------------------------------------------------------------------------------


@given(st.text())
def test_a_quoted_text_is_one_word_that_says_the_same(text: str) -> None:
    try:
        word = quote(text)
    except SchemaError:
        assert re.search(r"[\0-\x08\x0a-\x1f\x7f\ud800-\udfff]", text)
        return
    assert read_word(word) == text


def read_word(word: str) -> str:
    """A word as HAProxy's manual, 2.2, has it read; fails where it would end or expand."""
    text, quoted, escaped = "", False, False
    for character in word:
        if escaped:
            text, escaped = text + character, False
        elif character == "'":
            quoted = not quoted
        elif not quoted and character == "\\":
            escaped = True
        else:
            assert quoted or character not in ' \t"#$'
            text += character
    assert not (quoted or escaped)
    return text


def test_an_empty_text_is_a_word() -> None:
    assert quote("") == "''"


def test_a_format_has_no_meaning_left() -> None:
    assert quote_format("%[src] %%") == "'%%[src] %%%%'"


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "\x1b", "\x7f", "\ud800"])
def test_what_no_word_can_hold_is_refused(text: str) -> None:
    with pytest.raises(SchemaError):
        quote(text)


def test_parsed_texts_can_always_be_directives() -> None:
    for name, text, _ in GOOD:
        for scheme in ANY:
            made = directives(Service("web", scheme, options={name: parse_option(name, text)}), Checks(2000))
            assert not any("\n" in line for line in (*made.sections, *made.lines, made.server))
