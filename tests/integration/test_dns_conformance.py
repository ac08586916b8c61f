"""One list of questions, put to us and to dnsmasq; what differs is explained in docs/dns.md.

dnsmasq is set up as an operator would for the same names, by ``address=/local/…``. CoreDNS cannot be had
here: its column says what its documentation and its own tests say of the etcd plugin, with the same names.
"""

import os
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dnslib
import pytest

from discovery.dns import wire
from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from tests.lab.dns import EDGE, Upstream, answer, dnsmasq, serving

LIST = Path(__file__).with_name("dns_questions.toml")
PAGE = Path(__file__).parents[2] / "docs" / "dns.md"
QUESTIONS: list[dict[str, str]] = tomllib.loads(LIST.read_text())["question"]
OPCODES = {"NOTIFY": 4, "UPDATE": 5}
CLASSES = {"CH": 3}
SILENCE_SECONDS = 0.5
UPDATE = "DISCOVERY_UPDATE_DOCS"


def upstream_reply(message: bytes) -> list[bytes]:
    """As the Internet's resolvers have it: they know nothing of .local."""
    known = dnslib.DNSRecord.parse(message).q.qname == "example.org"
    return [answer(message, aa=0)] if known else [answer(message, aa=0, rcode=dnslib.RCODE.NXDOMAIN)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream(upstream_reply) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def servers(upstream: Upstream) -> Iterator[dict[str, Address]]:
    settings = DnsSettings((("127.0.0.1", 0),), (EDGE,), upstreams=(upstream.address,))
    host, port = upstream.address
    options = (f"--address=/local/{EDGE}", f"--server={host}#{port}")
    with serving(DnsServer(settings)) as server, dnsmasq(*options) as other:
        yield {"ours": server.addresses[0], "dnsmasq": other}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda each: " ".join(said(each)))
def test_the_answer_is_the_one_on_the_list(
    question: dict[str, str], servers: dict[str, Address], upstream: Upstream
) -> None:
    for server in ("ours", "dnsmasq"):
        before = len(upstream.asked)
        seen = summary(question, servers[server], may_be_silent=question[server] == "silence")
        forwarded = len(upstream.asked) > before
        assert (server, seen + " (asked upstream)" * forwarded) == (server, question[server])


def test_every_difference_is_explained() -> None:
    for question in QUESTIONS:
        differs = len({question["ours"], question["dnsmasq"], question["coredns"]}) > 1
        assert bool(question.get("why")) == differs, said(question)


def test_the_page_shows_the_list() -> None:
    """`DISCOVERY_UPDATE_DOCS=1` writes it."""
    before, _, rest = PAGE.read_text().partition("<!-- conformance -->\n")
    _, _, after = rest.partition("<!-- end of conformance -->\n")
    table = "\n".join(rows())
    expected = f"{before}<!-- conformance -->\n{table}\n<!-- end of conformance -->\n{after}"
    if os.environ.get(UPDATE):
        PAGE.write_text(expected)
    assert PAGE.read_text() == expected


def rows() -> Iterator[str]:
    yield "| question | ours | dnsmasq 2.90 | CoreDNS, etcd plugin | why |"
    yield "|---|---|---|---|---|"
    for question in QUESTIONS:
        ours = question["ours"]
        others = ["the same" if question[each] == ours else question[each] for each in ("dnsmasq", "coredns")]
        yield f"| {' '.join(said(question))} | {ours} | {' | '.join(others)} | {question.get('why', '')} |"


def said(question: dict[str, str]) -> tuple[str, ...]:
    how = question.get("how")
    return (f"`{question['name']}` {question['type']}", *([f"({how})"] if how else []))


# ---- asking ------------------------------------------------------------------------------------------


def summary(question: dict[str, str], server: Address, *, may_be_silent: bool) -> str:
    """The reply in a few words: rcode, flags, records."""
    message = build(question)
    try:
        if question.get("how") == "tcp":
            reply = over_tcp(server, message)
        else:
            reply = over_udp(server, message, SILENCE_SECONDS if may_be_silent else 10)
    except TimeoutError:
        return "silence"
    if not reply:
        return "connection closed"
    assert reply[:2] == message[:2]
    try:
        parsed = dnslib.DNSRecord.parse(reply)
    except dnslib.DNSError:
        return f"{dnslib.RCODE[reply[3] & 0xF]}, the message sent back"
    assert not parsed.questions or str(parsed.q.qname) == f"{question['name']}.", "its case is kept"
    opts = [each for each in parsed.ar if each.rtype == wire.OPT]
    rcode = parsed.header.rcode | (opts[0].ttl >> 24 << 4 if opts else 0)
    words = ["BADVERS" if rcode == wire.BADVERS else str(dnslib.RCODE[rcode])]
    words += [flag for flag in ("aa", "tc", "ra") if getattr(parsed.header, flag)]
    sizes = [f"EDNS {each.rclass}" for each in opts]
    return ", ".join([" ".join(words), *shown(parsed.rr), *shown(parsed.auth), *sizes])


def shown(records: list[Any]) -> list[str]:
    if len(records) > 3:
        return [f"{len(records)} {dnslib.QTYPE[records[0].rtype]}"]
    texts = []
    for each in records:
        rtype = str(dnslib.QTYPE[each.rtype])
        value = f"TTL {each.ttl}" if rtype == "SOA" else str(each.rdata)
        texts.append(
            "HINFO RFC 8482" if rtype == "HINFO" and b"RFC8482" in each.rdata.data else f"{rtype} {value}"
        )
    return texts


def build(question: dict[str, str]) -> bytes:
    record = dnslib.DNSRecord.question(question["name"], question["type"])
    how, _, value = question.get("how", "").partition(" ")
    header = record.header
    if how == "edns":
        version = int(value.removeprefix("version ") or 0)
        record.add_ar(dnslib.EDNS0(udp_len=4096, version=version))
    elif how == "class":
        record.questions[0].qclass = CLASSES[value]
    elif how == "opcode":
        header.opcode = OPCODES[value]
    elif how == "twice":
        record.add_question(dnslib.DNSQuestion("idle.local"))
    elif how == "response":
        header.qr = 1
    elif how == "answers":
        record.add_answer(*dnslib.RR.fromZone(f"{question['name']} 60 A 192.0.2.66") * 2)
    message = bytes(record.pack())
    if how == "cut":
        return message[:-2]
    if how == "loop":
        return message[: wire.HEADER_BYTES] + b"\xc0\x0c" + message[-4:]
    return message


def over_udp(server: Address, message: bytes, timeout_seconds: float) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_seconds)
        client.sendto(message, server)
        return client.recv(65535)


def over_tcp(server: Address, message: bytes) -> bytes:
    with socket.create_connection(server, timeout=10) as client, client.makefile("rb") as stream:
        client.sendall(len(message).to_bytes(2, "big") + message)
        return stream.read(int.from_bytes(stream.read(2), "big"))
