"""What can be set: the sections, with types, defaults and what each setting is for. Read by `config`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from discovery.errors import SchemaError
from discovery.tags import split_tags

ROLES = ("registrator", "proxy", "dns", "status")

Role = Literal["registrator", "proxy", "dns", "status"]


def _split(value: object) -> object:
    """One text of comma-separated words, as flags and environment give lists."""
    return (
        tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value
    )


Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsFromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
# HAProxy counts milliseconds in 31 bits.
WholeSeconds = Annotated[int, Field(ge=1, le=2_000_000)]


def _split_tags(value: object) -> object:
    """As flags and environment give tags, with `\\,` for a comma in one."""
    if not isinstance(value, str):
        return value
    try:
        return split_tags(value)
    except SchemaError as error:
        raise ValueError(str(error)) from None


Tags = Annotated[tuple[str, ...], BeforeValidator(_split_tags)]
Conventions = Annotated[
    tuple[Literal["registrator", "nginx-proxy", "compose", "compose-service"], ...],
    BeforeValidator(_split),
    Field(min_length=1),
]


def _setting(
    default: Any,
    description: str,
    flag: str | None = None,
    *,
    alias: str | None = None,
    secret: bool = False,
) -> Any:
    """A field of a section; ``flag`` where it is not the one made from the key, ``alias`` another one."""
    extra: dict[str, Any] = {"flag": flag, "alias": alias, "secret": secret}
    return Field(default, description=description, json_schema_extra=extra)


class Section(BaseModel):
    """Settings that belong together; immutable, and without a member that is none of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreSettings(Section):
    """Where the keys are."""

    url: str | None = _setting(None, "the store; default file:// in the state directory", "--store")
    timeout_seconds: Seconds = _setting(5.0, "bound of one call to the store")
    ca_file: Path | None = _setting(None, "PEM file of the authority that signed the store's certificate")
    cert_file: Path | None = _setting(None, "PEM file of our client certificate")
    key_file: Path | None = _setting(None, "PEM file of our client key")
    username: str | None = _setting(None, "user at the store")
    password: str | None = _setting(None, "password at the store", secret=True)


class NodeSettings(Section):
    """Who this node is."""

    name: str | None = _setting(None, "this node's name; default the host's", "--node")
    address: str | None = _setting(
        None,
        "this node's address: an address, an interface or a CIDR; default by the default route",
        "--address",
        alias="--ip",
    )


class DockerSettings(Section):
    """The Docker engine whose containers are registered."""

    url: str | None = _setting(None, "the engine; default DOCKER_HOST, else the standard socket", "--docker")
    ca_file: Path | None = _setting(
        None,
        "PEM file of the authority that signed the engine's certificate",
    )
    cert_file: Path | None = _setting(None, "PEM file of our client certificate for the engine")
    key_file: Path | None = _setting(None, "PEM file of our client key for the engine")
    internal: bool = _setting(False, "register containers' own addresses and ports", "--internal")
    explicit: bool = _setting(False, "register only containers that carry SERVICE_NAME", "--explicit")
    network: str | None = _setting(
        None,
        "of several networks the one whose address is registered; default the first by name",
        "--network",
    )
    tags: Tags = _setting((), "tags that every instance gets", "--tags")
    conventions: Conventions = _setting(
        ("registrator",),
        "whose words containers are read by: `registrator`, `nginx-proxy`, `compose` (names are"
        " PROJECT-SERVICE), `compose-service` (names are SERVICE)",
        "--conventions",
    )
    check_commands: bool = _setting(False, "run SERVICE_CHECK_CMD in containers, by exec", "--check-commands")


class RegistratorSettings(Section):
    """How instances are kept alive in the store."""

    ttl_seconds: Seconds = _setting(30.0, "life of a key without renewal", "--ttl")
    refresh_seconds: Seconds | None = _setting(
        None, "how often a key is renewed, less than its life; default a third of that", "--ttl-refresh"
    )
    relist_seconds: Seconds = _setting(60.0, "at least this often everything is compared", "--resync")
    grace_seconds: SecondsFromZero = _setting(
        0.0,
        "how long after its start a container is registered although its HEALTHCHECK has no verdict yet",
        "--grace",
    )
    stop_seconds: SecondsFromZero = _setting(
        0.0,
        "how long after its stop signal a container is expected to end, where that is more than it asks for"
        " itself; for `docker stop -t`",
    )


class ProxySettings(Section):
    """The edge."""

    http: Texts = _setting(("*:80",), "where HTTP is served", "--http")
    https: Texts = _setting(("*:443",), "where HTTPS is served, when certificates are given", "--https")
    certs: Path | None = _setting(None, "directory of PEM files with certificate and key", "--certs")
    bind_address: str = _setting("*", "where host_port listeners bind", "--bind-address")
    haproxy: str = _setting("haproxy", "the HAProxy to run: a path, or a name on the PATH", "--haproxy")
    templates: Path | None = _setting(
        None, "directory whose files replace HAProxy's templates one by one", "--templates"
    )
    user: str | None = _setting(
        None, "whom HAProxy becomes when the agent is root; default haproxy, where there is such a user"
    )
    mode: Literal["managed", "external"] = _setting(
        "managed", "managed: we run HAProxy; external: we write its files, and somebody else runs it"
    )
    check_cmd: str | None = _setting(
        None, "external: judges the new configuration `{{src}}`; default `haproxy -c` on it"
    )
    reload_cmd: str | None = _setting(None, "external: has HAProxy load the configuration, or starts it")
    command_timeout_seconds: Seconds = _setting(60.0, "external: bound of each of the two commands")
    reload_interval_seconds: SecondsFromZero = _setting(2.0, "least time between two reloads")
    reload_spread_seconds: SecondsFromZero = _setting(
        0.5, "most random delay of a reload, so that not all nodes reload at once"
    )
    spare_backends: Annotated[int, Field(ge=0, le=10_000)] = _setting(
        50, "backends kept ready for services that are yet to come, which then need no reload"
    )
    held_ports: Texts | None = _setting(
        None,
        "ports kept open for services yet to come, which then need no reload: `tcp:9000-9099,http:9100-9199`",
    )
    mass_loss_share: Share = _setting(
        0.5, "a loss of more than this share of all instances within a TTL is held back; 1 for never"
    )
    mass_loss_seconds: SecondsFromZero = _setting(
        600.0, "how long such a loss is held back while HAProxy's checks succeed"
    )
    old_worker_seconds: WholeSeconds = _setting(
        3600, "how long a worker may finish its connections after a reload"
    )
    old_workers: Count = _setting(20, "how many reloads a worker may outlive")


class DnsSettings(Section):
    """The node's resolver."""

    listen: Texts | None = _setting(
        None, "where DNS is served; default the bridge's gateway, port 53", "--dns"
    )
    zone: Texts = _setting(("local",), "the zones that are ours", "--zone")
    upstream: Texts | None = _setting(
        None,
        "resolvers for the rest; default the system's; `DOMAIN=ADDRESS` for the names in one domain",
        "--upstream",
    )
    answer: Texts | None = _setting(
        None, "what names resolve to; default the address served on", "--dns-answer"
    )
    wildcard: bool = _setting(False, "answer every name in the zone")
    subdomains: bool = _setting(False, "answer every name below a service's, such as `x.web.local`")
    ttl_seconds: int = _setting(5, "how long answers may be kept")
    negative_ttl_seconds: int = _setting(5, "how long it may be kept that there is no such name or record")
    networks: Texts | None = _setting(None, "who may ask; default the node's own networks")
    queries_per_second: int | None = _setting(
        None, "most queries of one client, above which it gets no answer; default no limit"
    )
    forward_private: bool = _setting(False, "ask the upstreams for the names of private addresses too")
    cache_entries: int = _setting(10_000, "most answers of upstreams that are kept; 0 keeps none")
    stale_seconds: int = _setting(
        3600, "how long past their TTL answers are used while no upstream answers; 0 for not at all"
    )
    processes: int = _setting(1, "processes that answer; several share the port, for more than one core")


class StatusSettings(Section):
    """Health, metrics and what is served, for machines."""

    listen: str = _setting("127.0.0.1:8405", "where the status role is served", "--status")


class LogSettings(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "least level that is logged")
    format: Literal["text", "json"] = _setting("text", "key=value text or JSON")


class Settings(Section):
    """All settings of one process."""

    state_dir: Path = _setting(
        Path("/var/lib/discovery") if os.geteuid() == 0 else platformdirs.user_state_path("discovery"),
        "directory for the file store and for what must outlive a restart",
        "--state",
    )
    roles: Annotated[tuple[Role, ...], BeforeValidator(_split)] = _setting(
        ROLES, "which roles an agent takes; a named one must be able to run", "--roles"
    )
    store: StoreSettings = StoreSettings()
    node: NodeSettings = NodeSettings()
    docker: DockerSettings = DockerSettings()
    registrator: RegistratorSettings = RegistratorSettings()
    proxy: ProxySettings = ProxySettings()
    dns: DnsSettings = DnsSettings()
    status: StatusSettings = StatusSettings()
    log: LogSettings = LogSettings()

    @property
    def store_url(self) -> str:
        """The store's URL, default filled in."""
        return self.store.url or f"file://{self.state_dir.absolute()}"

    @property
    def private_dir(self) -> Path:
        """What is ours alone in the state directory; by its dot name no key of the file store."""
        return self.state_dir / ".agent"

    @property
    def proxy_dir(self) -> Path:
        """What is the proxy role's alone."""
        return self.private_dir / "haproxy"
