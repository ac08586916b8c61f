import base64
import json
from typing import Any

import pytest

from discovery.errors import HistoryLost, StoreError, StoreRefused, StoreUnavailable
from discovery.stores.base import Change, Entry
from discovery.stores.etcd3_wire import (
    TXN_BYTES,
    LeaseNotFound,
    TokenInvalid,
    classify,
    decode_error,
    decode_watch,
    delete_txns,
    encode,
    prefix_range,
    put_txns,
)


def line(**result: Any) -> bytes:
    return json.dumps({"result": {"header": {"revision": "9"}, **result}}).encode()


def test_a_prefix_ends_before_the_next_name() -> None:
    wanted = prefix_range("/services/")
    assert base64.b64decode(wanted["range_end"]) == b"/services0"


def test_puts_are_split_by_number_and_by_size() -> None:
    assert [len(txn["success"]) for txn in put_txns({str(n): "v" for n in range(300)})] == [128, 128, 44]
    sizes = [len(txn["success"]) for txn in put_txns({str(n): "v" * (TXN_BYTES // 4) for n in range(5)})]
    assert sum(sizes) == 5
    assert max(sizes) < 4
    assert len(list(put_txns({"big": "v" * 2 * TXN_BYTES}))) == 1
    assert list(put_txns({})) == []


def test_only_a_session_names_a_lease() -> None:
    (static,) = put_txns({"k": "v"})
    (leased,) = put_txns({"k": "v"}, "7")
    assert static["success"][0]["request_put"] == {"key": encode("k"), "value": encode("v")}
    assert leased["success"][0]["request_put"]["lease"] == "7"


def test_a_key_is_deleted_once_in_a_txn() -> None:
    (txn,) = delete_txns(["a", "b", "a"])
    assert len(txn["success"]) == 2


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(StoreRefused):
        encode("\udcff")


def test_events_with_default_fields_left_out() -> None:
    put = {"kv": {"key": encode("a"), "create_revision": "7", "mod_revision": "7", "version": "1"}}
    delete = {"type": "DELETE", "kv": {"key": encode("b"), "mod_revision": "8"}}
    answer = decode_watch(line(events=[put, delete]))
    assert answer.changes == (Change("a", Entry("a", "", 7, 7)), Change("b", None))
    assert (answer.last, answer.revision, answer.created) == (8, 9, False)


def test_a_message_without_events_has_no_last_change() -> None:
    assert decode_watch(line(created=True)).created
    assert decode_watch(line()).last is None


def test_how_a_watch_ends() -> None:
    with pytest.raises(HistoryLost, match="200"):
        decode_watch(line(canceled=True, compact_revision="200"))
    denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    with pytest.raises(StoreRefused, match=r"^permission denied$"):
        decode_watch(line(created=True, canceled=True, cancel_reason=denied))
    with pytest.raises(StoreUnavailable, match=r"^no leader$"):
        decode_watch(
            json.dumps(
                {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}}
            ).encode()
        )


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (16, "etcdserver: invalid auth token", TokenInvalid),
        (3, "etcdserver: user name is empty", TokenInvalid),
        (5, "etcdserver: requested lease not found", LeaseNotFound),
        (11, "etcdserver: mvcc: required revision has been compacted", HistoryLost),
        (14, "etcdserver: request timed out", StoreUnavailable),
        (14, "etcdserver: leader changed", StoreUnavailable),
        (8, "etcdserver: too many requests", StoreUnavailable),
        (8, "etcdserver: mvcc: database space exceeded", StoreRefused),
        (7, "etcdserver: permission denied", StoreRefused),
    ],
)
def test_errors_by_what_they_say(code: int, text: str, kind: type[StoreError]) -> None:
    for message in ({"code": code, "message": text}, {"error": text, "code": code, "message": text}):
        assert type(decode_error(message)) is kind
    assert classify(code, text).args[0] == text.removeprefix("etcdserver: ")
