"""Every option: what it takes, in which form it is kept, and why it refuses the rest."""

import json

import pytest

from discovery.catalog import Catalog, Instance, Service
from discovery.errors import SchemaError
from discovery.option_values import milliseconds
from discovery.options import HIDDEN, OPTIONS, misuses, parse_option, shaping, shown, stand_in
from discovery.views import services_document

SHA256 = "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA"
SHA512 = "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1"
BCRYPT = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
YESCRYPT = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0"

GOOD = [
    ("path", "strip", "strip"),
    ("path", "keep", "keep"),
    ("redirect", "https", "https"),
    *[("balance", word, word) for word in ("roundrobin", "leastconn", "source", "random", "uri")],
    ("sticky", "cookie", "cookie"),
    ("weight", "0", "0"),
    ("weight", "256", "256"),
    ("maxconn", "1", "1"),
    ("check", "tcp", "tcp"),
    ("check", "none", "none"),
    ("check", "http:/health?a=%20'\"b", "http:/health?a=%20'\"b"),
    ("check_interval", "500ms", "500ms"),
    ("check_interval", "2000ms", "2s"),
    ("check_interval", "120s", "2m"),
    ("check_interval", "60m", "1h"),
    ("check_timeout", "1s", "1s"),
    ("check_rise", "1", "1"),
    ("check_fall", "100", "100"),
    ("timeout_connect", "10ms", "10ms"),
    ("timeout_server", "24h", "24h"),
    ("timeout_tunnel", "168h", "168h"),
    ("retries", "0", "0"),
    ("retries", "10", "10"),
    *[("protocol", word, word) for word in ("http", "https", "h2")],
    ("proxy_protocol", "v1", "v1"),
    ("proxy_protocol", "v2", "v2"),
    ("hosts", "API.Example.com., *.example.com,api.example.com", "api.example.com,*.example.com"),
    ("hosts", "*.local", "*.local"),
    ("hosts", "_a_b.x-y.xn--mnchen-3ya.de", "_a_b.x-y.xn--mnchen-3ya.de"),
    ("request_headers", " X-A :  a: b ", "X-A: a: b"),
    ("request_headers", 'X-A: 1|x-b: $(x) %[src] "q"', 'X-A: 1|x-b: $(x) %[src] "q"'),
    ("response_headers", "Strict-Transport-Security: max-age=1", "Strict-Transport-Security: max-age=1"),
    ("allow", "10.0.0.0/8, ::1,10.0.0.0/8,FD00::/8", "10.0.0.0/8,::1/128,fd00::/8"),
    ("allow", "192.0.2.1", "192.0.2.1/32"),
    ("allow", "nobody", "nobody"),
    ("auth", "nobody", "nobody"),
    ("auth", f"a:{SHA256}, b:{SHA512}", f"a:{SHA256},b:{SHA512}"),
    ("auth", f"c:{BCRYPT},d@x:{YESCRYPT}", f"c:{BCRYPT},d@x:{YESCRYPT}"),
]

BAD = [
    ("path", "Keep", "must be strip or keep"),
    ("path", "", "must be strip or keep"),
    ("redirect", "http", "must be https"),
    ("balance", "static-rr", "must be roundrobin or"),
    ("sticky", "yes", "must be cookie"),
    ("weight", "257", "from 0 to 256"),
    ("weight", "-1", "from 0 to 256"),
    ("weight", "\u0661", "from 0 to 256"),
    ("maxconn", "0", "from 1 to"),
    ("maxconn", "010", "from 1 to"),
    ("check", "http", "http: and a path"),
    ("check", "http:health", "http: and a path"),
    ("check", "http:/a b", "http: and a path"),
    ("check", "http:/a\nb", "http: and a path"),
    ("check", "http:/a#b", "http: and a path"),
    ("check", "http:/" + "x" * 1024, "http: and a path"),
    ("check_interval", "499ms", "from 500ms to 1h"),
    ("check_interval", "2", "such as 500ms"),
    ("check_interval", "2s ", "such as 500ms"),
    ("check_interval", "1.5s", "such as 500ms"),
    ("check_timeout", "61s", "from 100ms to 1m"),
    ("check_rise", "0", "from 1 to 100"),
    ("check_fall", "x", "from 1 to 100"),
    ("timeout_connect", "0ms", "from 10ms to 1m"),
    ("timeout_server", "25h", "from 100ms to 24h"),
    ("timeout_tunnel", "9999999999h", "from 100ms to 168h"),
    ("retries", "11", "from 0 to 10"),
    ("protocol", "fcgi", "must be http or https or h2"),
    ("proxy_protocol", "2", "must be v1 or v2"),
    ("hosts", "web", "one label only"),
    ("hosts", "*", "is no host name"),
    ("hosts", "a.*.com", "is no host name"),
    ("hosts", "*.*.com", "is no host name"),
    ("hosts", "a..com", "is no host name"),
    ("hosts", "-a.com", "is no host name"),
    ("hosts", "münchen.de", "xn--"),
    ("hosts", "a.com b.com", "is no host name"),
    ("hosts", "a.com:80", "is no host name"),
    ("hosts", "10.0.0.1", "an address names no service"),
    ("hosts", "a.com,", "a host name is missing"),
    ("hosts", "a" * 64 + ".com", "is no host name"),
    ("hosts", ".".join(["a" * 62] * 5), "is no host name"),
    ("hosts", ",".join(f"h{i}.com" for i in range(65)), "more than 64"),
    ("request_headers", "X-A", "printable ASCII"),
    ("request_headers", "X A: b", "token of RFC 9110"),
    ("request_headers", ": b", "token of RFC 9110"),
    ("request_headers", "X-A: b|", "a header is missing"),
    ("request_headers", "X-A: b\r\nX-B: c", "value of X-A"),
    ("request_headers", "X-A: ü", "value of X-A"),
    ("request_headers", "X-A: b|x-a: c", "twice"),
    ("request_headers", "Content-Length: 5", "may not set Content-Length"),
    ("request_headers", "TRANSFER-ENCODING: chunked", "may not set TRANSFER-ENCODING"),
    ("request_headers", "Host: x", "may not set Host"),
    ("request_headers", "X-Forwarded-For: 1", "may not set X-Forwarded-For"),
    ("request_headers", "X-A: " + "x" * 4096, "longer than 4096"),
    ("request_headers", "|".join(f"X-{i}: 1" for i in range(33)), "more than 32"),
    ("response_headers", "Connection: close", "may not set Connection"),
    ("allow", "10.0.0.1/8", "the network is 10.0.0.0/8"),
    ("allow", "", "a network is missing"),
    ("allow", "example.com", "is no network"),
    ("allow", "10.0.0.0/255.0.0.0", "is no network"),
    ("allow", "fe80::1%eth0", "is no network"),
    ("allow", "10", "is no network"),
    ("allow", "10.0.0.0/8 10.1.0.0/16", "is no network"),
    ("allow", ",".join(f"10.0.{i // 256}.{i % 256}" for i in range(257)), "more than 256"),
    ("auth", "", "a user is missing"),
    ("auth", "alice", "must be user:hash"),
    ("auth", f"al ice:{SHA512}", "must be user:hash"),
    ("auth", "alice:Tr0ub4dor", "openssl passwd -6"),
    ("auth", "alice:$1$abc$abcdefghijklmnopqrstuv", "openssl passwd -6"),
    ("auth", "alice:$2b" + BCRYPT[3:], "of kind"),
    ("auth", f"alice:{SHA512}x", "openssl passwd -6"),
    ("auth", "alice:$6$rounds=999999999$" + SHA512[3:], "too long to verify"),
    ("auth", "alice:$2y$31" + BCRYPT[6:], "too long to verify"),
    ("auth", "alice:$y$jFT" + YESCRYPT[6:], "too long to verify"),
    ("auth", f"a:{SHA512},a:{SHA256}", "twice"),
    ("auth", ",".join(f"u{i}:{SHA512}" for i in range(65)), "more than 64"),
    ("chek", "tcp", "did you mean check"),
]


@pytest.mark.parametrize(("name", "text", "canonical"), GOOD)
def test_a_good_value_has_one_form(name: str, text: str, canonical: str) -> None:
    assert parse_option(name, text) == canonical
    assert parse_option(name, canonical) == canonical


def test_every_option_is_in_both_tables() -> None:
    assert {name for name, *_ in GOOD} == OPTIONS.keys()
    assert OPTIONS.keys() <= {name for name, *_ in BAD}


@pytest.mark.parametrize(("name", "text", "reason"), BAD)
def test_a_bad_value_says_why(name: str, text: str, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as caught:
        parse_option(name, text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("auth", "alice:s3cret"),
        ("auth", "alice:$1$s3cret$"),
        ("auth", "s3cret"),
        ("auth", f"alice:{SHA512},bob:s3cret"),
        ("request_headers", "X-Key: s3cret\x01"),
        ("request_headers", "s3cret: \x01|s3cret s3cret"),
        ("request_headers", "X-Key s3cret"),
    ],
)
def test_no_reason_repeats_a_secret(name: str, text: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_option(name, text)
    assert "s3cret" not in str(caught.value).replace("value of s3cret", "")


def test_secrets_are_not_shown() -> None:
    options = {"auth": f"alice:{SHA512}", "request_headers": "X-Key: s3cret", "balance": "random"}
    web = Service("web", instances=(Instance("0", "10.0.0.5", 80),), options=options)
    document = json.dumps(services_document(Catalog(1, {"web": web}), ()))
    assert "s3cret" not in document
    assert SHA512 not in document
    assert document.count(HIDDEN) == 2
    assert '"balance": "random"' in document
    assert shown("of a newer version", "s3cret") == HIDDEN
    assert shown("auth", "nobody") == "nobody"


def test_what_keeps_people_out_does_not_let_them_in_when_it_is_bad() -> None:
    for name in OPTIONS:
        assert stand_in(name) == ({name: "nobody"} if name in ("allow", "auth") else {})
        for value in stand_in(name).values():
            assert parse_option(name, value) == value
    assert stand_in("unknown") == {}


def test_durations_are_compared_in_milliseconds() -> None:
    assert [milliseconds(text) for text in ("500ms", "2s", "5m", "1h")] == [500, 2000, 300_000, 3_600_000]


def test_options_of_the_other_scheme_are_reported() -> None:
    assert misuses("http", {"balance": "uri", "sticky": "cookie", "auth": "nobody"}) == {}
    options = {"balance": "uri", "sticky": "cookie", "allow": "::/0", "auth": "nobody", "x": "y"}
    found = misuses("tcp", options)
    assert found == {
        "balance": "balance=uri is for services of scheme http, this one is tcp",
        "sticky": "sticky is for services of scheme http, this one is tcp",
        "auth": "auth is for services of scheme http, this one is tcp; nobody is let in",
    }
    assert misuses("tcp", {"balance": "source"}) == {}
    assert misuses("http", {"check": "none", "check_rise": "2"}) == {
        "check_rise": "check_rise is without effect, for check is none"
    }


def test_options_of_the_section_are_told_from_those_of_the_maps() -> None:
    options = {"path": "keep", "hosts": "a.b", "redirect": "https", "weight": "1", "balance": "random"}
    assert shaping(options) == {"balance": "random"}
