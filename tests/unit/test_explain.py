"""What is said of services and of URLs; tests/integration/test_explain.py has the containers."""

import pytest

from discovery.builder import CatalogBuilder
from discovery.catalog import Catalog
from discovery.errors import SchemaError
from discovery.explain import explain_request, explain_service, explanation_lines, is_known
from discovery.stores.base import Entry, Snapshot

KEYS = {
    "/services/shop/hosts/a": "192.0.2.7:8000",
    "/services/shop/hosts/b": "nonsense",
    "/services/shop/attributes/a": '{"node": "n1", "container": "web", "weight": 3}',
    "/services/kept/hosts/a": "192.0.2.7:8001",
    "/services/kept/attributes/a": '{"draining": true}',
    "/services/kept/options/path": "keep",
    "/services/kept/options/hosts": "shop.example.net,*.example.net",
    "/services/db/scheme": "tcp",
    "/services/db/host_port": "5432",
    "/services/db/hosts/a": "192.0.2.7:5432",
    "/services/deaf/scheme": "tcp",
    "/services/deaf/hosts/a": "192.0.2.7:1",
    "/services/empty/scheme": "http",
    "/services/clock/udp/a": "192.0.2.7:123",
    "/services/broken/scheme": "ftp",
}
PORTS = frozenset({80, 443})


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    entries = {key: Entry(key, value, 1, 1) for key, value in KEYS.items()}
    return CatalogBuilder().reset(Snapshot(1, entries))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "shop",
            "service shop, http\n  edges: routed\n    by host: shop, shop.…\n    by path: /shop, which",
        ),
        (
            "shop",
            "  instance a at 192.0.2.7:8000: takes requests\n    container web\n    node n1\n    weight 3",
        ),
        ("shop", "  /services/shop/hosts/b: left out\n    "),
        ("kept", "edges: answered by 503\n    there is no instance that takes requests"),
        ("kept", "by path: /kept, which is kept"),
        ("kept", "instance a at 192.0.2.7:8001: draining: no new requests"),
        ("db", "service db, tcp\n  edges: routed\n    by port: 5432 on every edge"),
        ("deaf", "edges: not routed\n    a tcp service needs a host_port"),
        ("empty", "edges: answered by 503"),
        ("clock", "service clock, udp\n  edges: not routed\n    it speaks UDP only"),
        ("clock", "instance a at 192.0.2.7:123/udp: takes requests"),
        ("broken", "service broken\n  /services/broken/scheme: left out\n    unknown scheme"),
    ],
)
def test_a_service(catalog: Catalog, name: str, said: str) -> None:
    assert is_known(catalog, name)
    assert said in "\n".join(explanation_lines(explain_service(catalog, name)))


def test_nobody(catalog: Catalog) -> None:
    assert not is_known(catalog, "nobody")
    assert not is_known(catalog, "sho")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://shop.example.com/x", "route: service shop\n    the first label of the host names it"),
        ("SHOP.local", "route: service shop"),
        ("http://shop.example.com./", "route: service shop"),
        (
            "example.com/shop/x?y",
            "route: service shop\n    the first label of the host: no service is named 'example'",
        ),
        ("example.com/shop?y", "the first segment of the path names it"),
        ("http://kept.example.com/shop", "route: service kept"),
        ("https://10.0.0.1/shop", "the first label of the host: there is none, or it is an address"),
        ("http://[fd00::1]/shop", "route: service shop"),
        ("http://shop.example.net/", "option hosts, which has shop.example.net, names it"),
        ("http://anything.example.net/", "option hosts, which has *.example.net, names it"),
        ("example.com:5432", "route: service db\n    port 5432 is the host_port of service db"),
        ("http://db.example.com/", "service db is no http service"),
        ("http://example.com/shopping", "route: answered by 404"),
        ("http://example.com/", "the first segment of the path: there is none"),
        (
            "example.com:9999",
            "route: nobody listens there\n    no service has host_port 9999, and HTTP is served on",
        ),
    ],
)
def test_a_request(catalog: Catalog, url: str, said: str) -> None:
    assert said in "\n".join(explanation_lines(explain_request(catalog, url, PORTS)))


@pytest.mark.parametrize("url", ["http://[::1/", "example.com:port/", "example.com:99999"])
def test_no_url(catalog: Catalog, url: str) -> None:
    with pytest.raises(SchemaError, match="is no URL"):
        explain_request(catalog, url, PORTS)
