"""The JSON of etcd's v3 gateway ↔ our values. Pure.

The gateway writes protobuf as JSON: int64 as text, bytes as base64, and fields of a default value not at
all (an event without a type is a put, an event's kv without a value has an empty one).
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from discovery.errors import HistoryLost, StoreError, StoreRefused, StoreUnavailable
from discovery.stores.base import Change, Entry

Body = Mapping[str, Any]

TXN_OPERATIONS = 128
"""etcd's default --max-txn-ops."""

TXN_BYTES = 1024 * 1024
"""Of keys and values in one txn; etcd's default --max-request-bytes is half as much again."""

# https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_DEADLINE_EXCEEDED = 4
_OUT_OF_RANGE = 11
_UNAVAILABLE = 14
_UNAUTHENTICATED = 16

_TOKEN_WORDS = ("invalid auth token", "user name is empty", "revision in header is old", "auth store is old")
_PASSING_WORDS = ("no leader", "leader changed", "timed out", "too many requests", "server stopped")
_LEASE_WORDS = "lease not found"
_COMPACTED_WORDS = "has been compacted"
_AUTH_OFF_WORDS = "authentication is not enabled"


class TokenInvalid(StoreRefused):
    """The token is unknown, expired or missing: authenticate again."""


class AuthDisabled(StoreRefused):
    """The server asks for no user and password; what was given is not needed."""


class LeaseNotFound(StoreRefused):
    """The lease has expired or was revoked."""


UNINTELLIGIBLE = (KeyError, ValueError, TypeError, AttributeError)
"""What decoding raises when an answer is not of the gateway's form."""


# ---- requests ---------------------------------------------------------------------------------------


def encode(text: str) -> str:
    """Text as the gateway wants bytes. Raises StoreRefused for text that is no Unicode."""
    try:
        return base64.b64encode(text.encode()).decode("ascii")
    except UnicodeEncodeError as error:
        raise StoreRefused(f"{text!a} cannot be stored: it is no valid text") from error


def prefix_range(prefix: str) -> dict[str, str]:
    """The key range of everything that begins with ``prefix``; of all keys when it is empty.

    The end is the prefix with its last byte plus one; UTF-8 never has a byte 0xff, so one can be added.
    """
    if not prefix:
        return {"key": base64.b64encode(b"\0").decode(), "range_end": base64.b64encode(b"\0").decode()}
    key = encode(prefix)
    start = prefix.encode()
    end = start[:-1] + bytes([start[-1] + 1])
    return {"key": key, "range_end": base64.b64encode(end).decode("ascii")}


def put_txns(values: Mapping[str, str], lease: str | None = None) -> Iterator[Body]:
    """Bodies of txns that put ``values``, each within etcd's default limits; ``lease`` owns the keys."""
    operations: list[Body] = []
    size = 0
    for key, value in values.items():
        put = {"key": encode(key), "value": encode(value), **({"lease": lease} if lease else {})}
        # Base64 counts a third more than the bytes: on the safe side.
        weight = len(put["key"]) + len(put["value"])
        if operations and (len(operations) == TXN_OPERATIONS or size + weight > TXN_BYTES):
            yield {"success": operations}
            operations, size = [], 0
        operations.append({"request_put": put})
        size += weight
    if operations:
        yield {"success": operations}


def _delete(key: str, lease: str | None) -> Body:
    delete: Body = {"request_delete_range": {"key": key}}
    if lease is None:
        return delete
    owned = {"key": key, "target": "LEASE", "result": "EQUAL", "lease": lease}
    return {"request_txn": {"compare": [owned], "success": [delete]}}


def delete_txns(keys: Iterable[str], lease: str | None = None) -> Iterator[Body]:
    """Bodies of txns that delete ``keys``; with ``lease`` only those that still hang on it."""
    unique = [_delete(encode(key), lease) for key in dict.fromkeys(keys)]
    # etcd allows a txn within a txn only as many operations as the outer one has left over.
    most = TXN_OPERATIONS if lease is None else TXN_OPERATIONS - 1
    for start in range(0, len(unique), most):
        yield {"success": unique[start : start + most]}


# ---- answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WatchAnswer:
    """One message of a watch.

    ``revision`` is the store's when it was sent; it may be ahead of what the watch has told so far.
    ``last`` is the revision of the last of its changes, None without any.
    """

    revision: int
    created: bool
    last: int | None
    changes: tuple[Change, ...]


def revision_of(answer: Body) -> int:
    """The store's revision when it answered."""
    return int(answer["header"]["revision"])


def decode_entry(kv: Body) -> Entry:
    """A key-value of a range or an event."""
    return Entry(
        key=_decode(kv["key"]),
        value=_decode(kv.get("value", "")),
        created=int(kv.get("create_revision", 0)),
        modified=int(kv.get("mod_revision", 0)),
    )


def after_key(kv: Body) -> str:
    """The least key (base64) after this one, to page on from."""
    return base64.b64encode(base64.b64decode(kv["key"]) + b"\0").decode("ascii")


def decode_watch(line: bytes) -> WatchAnswer:
    """One line of a watch's stream. Raises as the server says when it ends the watch.

    HistoryLost when the changes asked for are compacted away, StoreUnavailable when the member lost its
    leader, StoreRefused when the user may not read the prefix.
    """
    message = json.loads(line)
    if "error" in message:
        raise decode_error(message)
    answer = message["result"]
    compacted = int(answer.get("compact_revision", 0))
    if compacted:
        raise HistoryLost(f"changes before revision {compacted} are compacted away")
    if answer.get("canceled"):
        # "rpc error: code = PermissionDenied desc = etcdserver: permission denied", or the text alone
        raise classify(0, str(answer.get("cancel_reason", "the watch was canceled, no reason was given")))
    events = answer.get("events", ())
    return WatchAnswer(
        revision=int(answer["header"].get("revision", 0)),
        created=bool(answer.get("created")),
        last=max((int(event["kv"]["mod_revision"]) for event in events), default=None),
        changes=tuple(_decode_event(event) for event in events),
    )


def _decode_event(event: Body) -> Change:
    if event.get("type", "PUT") == "DELETE":
        return Change(_decode(event["kv"]["key"]), None)
    entry = decode_entry(event["kv"])
    return Change(entry.key, entry)


def _decode(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode(errors="backslashreplace")
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def decode_error(message: Body) -> StoreError:
    """The gateway's error as one of ours: ``{code, message}``, in a stream ``{error: {grpc_code, …}}``."""
    inner = message.get("error")
    error = inner if isinstance(inner, Mapping) else message
    return classify(int(error.get("grpc_code", error.get("code", 0))), str(error.get("message", "")))


def classify(code: int, text: str) -> StoreError:
    """A gRPC status code and its text as one of our errors. The text decides: codes differ by version."""
    said = text.rpartition("desc = ")[2].removeprefix("etcdserver: ") or f"gRPC status {code}"
    if _AUTH_OFF_WORDS in said:
        return AuthDisabled(said)
    if code == _UNAUTHENTICATED or any(words in said for words in _TOKEN_WORDS):
        return TokenInvalid(said)
    if _COMPACTED_WORDS in said and code in (0, _OUT_OF_RANGE):
        return HistoryLost(said)
    if _LEASE_WORDS in said:
        return LeaseNotFound(said)
    if code in (_UNAVAILABLE, _DEADLINE_EXCEEDED) or any(words in said for words in _PASSING_WORDS):
        return StoreUnavailable(said)
    return StoreRefused(said)
