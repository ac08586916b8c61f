"""What an operator may write by hand, checked before it is written. Pure."""

from discovery.errors import SchemaError, UsageError
from discovery.options import OPTIONS, parse_option
from discovery.schema import (
    is_instance,
    parse_address,
    parse_id,
    parse_name,
    parse_port,
    parse_scheme,
    service_prefix,
)

_OVERRIDES = {"scheme": str, "host_port": str}


def key_of(name: str, field: str) -> str:
    """The key of ``hosts/<id>``, ``udp/<id>`` or an option of a service. Raises UsageError for others."""
    try:
        parse_name(name)
        directory, separator, id_ = field.partition("/")
        if separator and is_instance(field):
            return f"{service_prefix(name)}{directory}/{parse_id(id_)}"
    except SchemaError as error:
        raise UsageError(f"{name}/{field}: {error}") from error
    if field in OPTIONS or field in _OVERRIDES:
        return f"{service_prefix(name)}options/{field}"
    known = ", ".join([*_OVERRIDES, *OPTIONS])
    raise UsageError(
        f"{field!r} is no field of a service; there is hosts/ID, udp/ID, and the options {known}"
    )


def entry(name: str, field: str, value: str) -> tuple[str, str]:
    """Key and canonical value of what the operator wants set. Raises UsageError with the reason."""
    key = key_of(name, field)
    try:
        if is_instance(field):
            parse_address(value)
            return key, value
        if field == "scheme":
            return key, parse_scheme(value)
        if field == "host_port":
            return key, str(parse_port(value))
        return key, parse_option(field, value)
    except SchemaError as error:
        raise UsageError(f"{field}: {error}") from error
