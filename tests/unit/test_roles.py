"""From settings to the parts of each role."""

import pytest

from discovery.config import load
from discovery.errors import ConfigError
from discovery.roles import dns_server, dns_upstreams

RESOLVER = ("10.0.0.2", 53)


@pytest.mark.parametrize(
    ("text", "everywhere", "by_domain"),
    [
        (None, None, ()),
        ("10.0.0.2", (RESOLVER,), ()),
        ("10.0.0.2:5353, fd00::1", (("10.0.0.2", 5353), ("fd00::1", 53)), ()),
        ("consul=10.0.0.2:8600", None, (("consul", (("10.0.0.2", 8600),)),)),
        ("consul=10.0.0.2,[fd00::1]:5353", (("fd00::1", 5353),), (("consul", (RESOLVER,)),)),
        ("corp=10.0.0.2,corp=[fd00::1]", None, (("corp", (RESOLVER,)), ("corp", (("fd00::1", 53),)))),
        ("", (), ()),
    ],
)
def test_upstreams_are_for_everything_or_for_one_domain(
    text: str | None, everywhere: object, by_domain: object
) -> None:
    flags = {} if text is None else {"dns.upstream": text}
    settings = load(flags, {}, None).settings
    assert dns_upstreams(settings.dns.upstream) == (everywhere, by_domain)


@pytest.mark.parametrize(
    "text",
    ["consul=", "=10.0.0.2", "consul=resolver", "con sul=10.0.0.2", "x.local=10.0.0.2", "a=127.0.0.9:5300"],
)
def test_upstreams_that_cannot_be_name_their_setting(text: str) -> None:
    settings = load({"dns.listen": "127.0.0.9:5300", "dns.upstream": text}, {}, None).settings
    with pytest.raises(ConfigError) as caught:
        dns_server(settings)
    assert caught.value.setting == "dns.upstream"
