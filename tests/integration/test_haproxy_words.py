"""Words of a configuration: every server's as the runtime takes them, every text as HAProxy reads it."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.catalog import Instance, Service
from discovery.haproxy.directives import quote, quote_format
from tests.lab.backend_config import DEFAULTS, edge_of, section
from tests.lab.bare import bare
from tests.lab.haproxy import VERSIONS, echo, fetch, free_port, haproxy_binary

# ---- every combination, at runtime ------------------------------------------------------------------

INSTANCE = (Instance("0", "127.0.0.1", 9),)
COMBINED: dict[str, tuple[dict[str, str], ...]] = {
    "balance": tuple({"balance": word} for word in ("roundrobin", "leastconn", "source", "random", "uri")),
    "sticky": ({}, {"sticky": "cookie"}),
    "check": ({}, {"check": "http:/x"}, {"check": "none"}),
    "protocol": ({}, {"protocol": "https"}, {"protocol": "h2"}),
    "proxy": ({}, {"proxy_protocol": "v1"}, {"proxy_protocol": "v2", "maxconn": "5"}),
}


def combinations() -> Iterator[Service]:
    for number, parts in enumerate(itertools.product(*COMBINED.values())):
        options = {name: text for part in parts for name, text in part.items()}
        yield Service(f"c{number}", options=options)
        if not options.keys() & {"sticky", "protocol"} and options["balance"] != "uri":
            yield Service(f"t{number}", "tcp", options=options)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_runtime_takes_every_combination(version: str, tmp_path: Path) -> None:
    with echo() as port:
        sections = [section(each) for each in combinations()]
        # The same with a server from the beginning: HAProxy then checks the words of default-server.
        each_with_one = (replace(each, name=f"{each.name}x", instances=INSTANCE) for each in combinations())
        with_server = [section(each) for each in each_with_one]
        with edge_of(tmp_path, version, sections + with_server) as edge:
            for each in sections:
                added = f"add server {each.name}/s1 127.0.0.1:{port} {each.directives.server}"
                assert "New server registered" in edge.haproxy.ask(added), (each.service.options, added)
                if each.directives.checked:
                    assert not edge.haproxy.ask(f"enable health {each.name}/s1").strip()
                if each.directives.after_add:
                    assert not edge.haproxy.ask(f"{each.directives.after_add} {each.name}").strip()
            assert edge.haproxy.worker


# ---- escaping ---------------------------------------------------------------------------------------

PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)
HOSTILE = st.sampled_from(
    ["%[src]", "%%", "$HOME", "${HOME}", "'", '"', "\\", "#", "\\n", " if ", "{", "}", "  ", "\t"]
)
VALUES = st.lists(st.one_of(HOSTILE, PRINTABLE), min_size=1, max_size=12).map("".join)
BATCH = 60


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=3, deadline=None)
@given(texts=st.lists(VALUES, min_size=BATCH, max_size=BATCH))
def test_every_text_arrives_exactly_as_it_is(
    version: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Many values in one configuration, so that few processes try many of them."""
    values = [text for text in (each.strip(" \t") for each in texts) if text]
    lines = [f"http-response set-header X-F{n} {quote_format(text)}" for n, text in enumerate(values)]
    lines += [f"http-request set-header X-F{n} {quote_format(text)}" for n, text in enumerate(values)]
    lines += [
        f"http-request return status 200 content-type text/plain string {quote(text)} if {{ path /{n} }}"
        for n, text in enumerate(values)
    ]
    port = free_port()
    with echo() as behind_port, ExitStack() as stack:
        text = f"{DEFAULTS}frontend f from edge\n    bind 127.0.0.1:{port}\n    default_backend b\n"
        text += "backend b from edge\n" + "".join(f"    {line}\n" for line in lines)
        text += f"    server s 127.0.0.1:{behind_port}\n"
        stack.enter_context(bare(haproxy_binary(version), tmp_path_factory.mktemp("escaping"), text))
        answer = fetch(port, "/none", "x")
        for n, value in enumerate(values):
            assert answer.headers[f"x-f{n}"] == value
            assert answer.seen["headers"][f"x-f{n}"] == value
            assert fetch(port, f"/{n}", "x").text == value
