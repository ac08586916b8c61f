"""etcd's v2 API: one request to one server, or to the first of several that answers. Built on python-etcd.

What python-etcd does for us: connections, user and password, forms and queries. What it does not do here,
because it does it wrongly: choose among servers (after a total outage its list of them is empty for good,
jplana/python-etcd#138), quote keys (``?``, ``#`` and ``%`` change them), retry (urllib3's three retries
make a hung server cost four time-outs), and read errors (it drops the status of a reply without JSON).
"""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import quote

import etcd
import structlog
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from discovery.errors import StoreRefused, StoreUnavailable
from discovery.stores.endpoints import Endpoint, Target

log = structlog.get_logger(__name__)

# Codes of the v2 API that are answers to a question, not failures.
KEY_NOT_FOUND = 100
COMPARE_FAILED = 101
NOT_A_FILE = 102
NOT_A_DIRECTORY = 104
KEY_EXISTS = 105
INDEX_CLEARED = 401

_ANSWERS = (KEY_NOT_FOUND, COMPARE_FAILED, NOT_A_FILE, NOT_A_DIRECTORY, KEY_EXISTS, INDEX_CLEARED)

WORKERS = 8
"""Requests at once in a batch: 4 and 8 were equally quick with a server beside us (1,000 puts in 0.3 s, one
at a time 0.7 s); 8 leave a reserve for a server that takes its time."""

_PAUSE_SECONDS = 0.1

# The kernel asks after a silent peer, so that a long poll through a dead network path ends in 25 s, and
# that no router on the way forgets it. Costs the server nothing.
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]

# It logs every failed request as an error; we log changes of state.
logging.getLogger("etcd").propagate = False

T = TypeVar("T")
Params = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. ``code`` is 0 for yes, else one of the codes above.

    ``index`` is the server's index (X-Etcd-Index) when it answered, for a long poll when it began.
    ``body`` is the JSON object: ``action``, ``node`` and ``prevNode``, or ``cause`` of a code.
    ``repeated`` says that an earlier try of this request had no answer, and may have been carried out.
    """

    code: int
    index: int
    cluster_id: str
    body: Mapping[str, Any]
    repeated: bool = False

    @property
    def node(self) -> Mapping[str, Any]:
        """The node that a yes is about."""
        node: Mapping[str, Any] = self.body["node"]
        return node


class NoQuorum(StoreUnavailable):
    """A server answered that it cannot decide now, for want of a leader or a majority."""


# ---- keys -------------------------------------------------------------------------------------------


def key_path(key: str) -> str:
    """The URL path of a key to be written. Raises StoreRefused for one that etcd v2 would change or hide."""
    parts = key.split("/")
    if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
        raise StoreRefused(f"etcd v2 cannot hold the key {key!a}: a part of its path is empty or dots")
    if any(part.startswith("_") for part in parts):
        raise StoreRefused(f"etcd v2 would hide the key {key!a}: a part of its path begins with _")
    return read_path(key)


def read_path(key: str) -> str:
    """The URL path of a key or directory to be read."""
    try:
        # Every character outside a small safe set is quoted; urllib3 leaves what is quoted as it is.
        return "/v2/keys" + quote(key.rstrip("/"), safe="/")
    except UnicodeEncodeError as error:
        raise StoreRefused(f"the key {key!a} is no valid text") from error


def value_text(key: str, value: str) -> str:
    """``value`` if it can be sent."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise StoreRefused(f"the value of {key!a} is no valid text") from error
    return value


# ---- one server -------------------------------------------------------------------------------------


class _Client(etcd.Client):  # type: ignore[misc]  # python-etcd has no types
    """python-etcd's client, but that every reply comes back as it is, whatever its status."""

    on_response: Callable[[Any], None] = staticmethod(lambda _response: None)

    def _check_cluster_id(self, response: Any) -> None:
        # Called with each reply before its body is read. The check itself is ours: here it would fail a
        # request that was carried out, and only the first one at that.
        self.on_response(response)

    def _handle_server_response(self, response: Any) -> Any:
        return response


class Server:
    """One endpoint. Thread-safe."""

    def __init__(self, endpoint: Endpoint, target: Target, context: ssl.SSLContext | None) -> None:
        self.endpoint = endpoint
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self._client = _Client(
            host=host,
            port=endpoint.port,
            protocol="https" if target.tls else "http",
            # urllib3 encodes both as latin-1, etcd expects UTF-8.
            username=_utf8(target.username),
            password=_utf8(target.password),
            allow_redirect=False,
            per_host_pool_size=WORKERS + 2,
        )
        self._client.http.connection_pool_kw |= {"retries": False, "socket_options": _SOCKET_OPTIONS}
        if context is not None:
            self._client.http.connection_pool_kw["ssl_context"] = context

    def request(self, method: str, path: str, params: Params, timeout_seconds: float) -> Answer:
        """One request. Raises StoreUnavailable or StoreRefused."""
        deadline = time.monotonic() + timeout_seconds
        try:
            return self._once(method, path, params, timeout_seconds)
        except _ConnectionClosed:
            # It was kept open since an earlier request and the server has closed it meanwhile.
            again = self._once(method, path, params, deadline - time.monotonic())
            return replace(again, repeated=True)

    def _once(self, method: str, path: str, params: Params, timeout_seconds: float) -> Answer:
        timeout = urllib3.Timeout(total=max(timeout_seconds, 0.001))
        try:
            response = self._client.api_execute(path, method, params=dict(params), timeout=timeout)
        except etcd.EtcdConnectionFailed as error:
            closed = isinstance(error.cause, ProtocolError)
            kind = _ConnectionClosed if closed else StoreUnavailable
            raise kind(f"{self.endpoint}: {_reason(error.cause)}") from error
        return _answer(self.endpoint, response.status, response.headers, response.data)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._client.http.clear()


class PollingServer(Server):
    """One endpoint for long polls, one at a time, which another thread may end.

    A poll may wait ``poll_seconds`` for its event once the server has begun to answer.
    """

    def __init__(
        self, endpoint: Endpoint, target: Target, context: ssl.SSLContext | None, poll_seconds: float
    ) -> None:
        super().__init__(endpoint, target, context)
        self._client.on_response = self._begun
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._response: Any = None
        self._aborted = False

    def poll(self, path: str, params: Params, timeout_seconds: float) -> Answer:
        """One long poll; ``timeout_seconds`` bounds the time until the server begins to answer."""
        return self._once("GET", path, params, timeout_seconds)

    def _begun(self, response: Any) -> None:
        """The head of the reply is there, the event may take its time."""
        with self._lock:
            self._response = response
            if response.connection is not None:
                response.connection.sock.settimeout(self._poll_seconds)
            if self._aborted:
                _shut(response)

    def abort(self) -> None:
        """End a poll that waits for its event; one that has no reply yet ends with its time-out."""
        with self._lock:
            self._aborted = True
            if self._response is not None:
                _shut(self._response)
        self.close()


class _ConnectionClosed(StoreUnavailable):
    """The server closed the connection before it answered."""


def _shut(response: Any) -> None:
    try:
        response.shutdown()
    except (OSError, ValueError, RuntimeError):
        # It is over already: the body was read and the connection given back.
        return


def _utf8(text: str | None) -> str | None:
    return None if text is None else text.encode().decode("latin-1")


def _answer(endpoint: Endpoint, status: int, headers: Mapping[str, str], data: bytes) -> Answer:
    try:
        body = json.loads(data)
        code = 0 if status in (200, 201) else int(body.get("errorCode", -1))
        index = int(headers.get("X-Etcd-Index") or body.get("index", 0))
    except (ValueError, TypeError, AttributeError):
        raise _no_v2_json(endpoint, status, data) from None
    if (code == 0 and "node" in body) or code in _ANSWERS:
        return Answer(code, index, headers.get("X-Etcd-Cluster-Id") or "", body)
    said = f"{body.get('message', status)} {body.get('cause', '')}".strip()[:200]
    if status == 401:
        raise StoreRefused(
            f"{endpoint}: user or password are missing, not right, or not allowed this: {said}"
        )
    if status >= 500 or code in (300, 301, 400):
        raise NoQuorum(f"{endpoint}: {said}")
    raise StoreRefused(f"{endpoint}: {said}")


def _no_v2_json(endpoint: Endpoint, status: int, data: bytes) -> StoreRefused | StoreUnavailable:
    if status == 404:
        return StoreRefused(
            f"{endpoint} has no v2 API: start etcd with --enable-v2 (etcd 3.5 or older) or use etcd3://"
        )
    if status == 200 and not data:
        return _ConnectionClosed(f"{endpoint}: it closed the connection")
    if status >= 500:
        return NoQuorum(f"{endpoint}: it says {status} and no more")
    return StoreRefused(f"{endpoint} is no etcd v2: it says {status} and no JSON")


def _reason(cause: Exception) -> str:
    # urllib3 puts pool and address first and what happened last.
    last = str(cause).rsplit(": ", 1)[-1][:200]
    match cause:
        case NewConnectionError():
            return last
        case ReadTimeoutError() | ConnectTimeoutError():
            return "no answer in time"
        case ProtocolError():
            return "it closed the connection"
        case SSLError() | ssl.SSLError():
            return f"TLS fails: {last}"
        case _:
            return last or type(cause).__name__


# ---- several servers --------------------------------------------------------------------------------


class Servers:
    """The endpoints of one store. A call goes to the one that answered last, and on to the next."""

    def __init__(self, target: Target, context: ssl.SSLContext | None, timeout_seconds: float) -> None:
        self.target = target
        self.timeout_seconds = timeout_seconds
        self.closed = threading.Event()
        self._context = context
        self._servers = [Server(endpoint, target, context) for endpoint in target.endpoints]
        self._preferred = 0
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="etcd2")

    def __len__(self) -> int:
        return len(self._servers)

    def server(self, number: int) -> Server:
        """One of them; any number counts round."""
        return self._servers[number % len(self._servers)]

    def polling(self, number: int, poll_seconds: float) -> PollingServer:
        """A new client of one of them, for long polls."""
        endpoint = self.server(number).endpoint
        return PollingServer(endpoint, self.target, self._context, poll_seconds)

    @property
    def preferred(self) -> int:
        """The number of the server that answered last."""
        return self._preferred

    def call(self, method: str, path: str, params: Params) -> Answer:
        """One request, answered by any server within the time-out.

        Every endpoint gets an even share of what is left, so that a hung one does not use up the others'.
        Another round is made only while some server lives and waits for a leader.
        """
        deadline = time.monotonic() + self.timeout_seconds
        pause_seconds = _PAUSE_SECONDS
        repeated = False
        while not self.closed.is_set():
            failures: list[StoreUnavailable] = []
            first = self._preferred
            for tried in range(len(self)):
                share_seconds = (deadline - time.monotonic()) / (len(self) - tried)
                try:
                    answer = self.server(first + tried).request(method, path, params, share_seconds)
                except StoreUnavailable as error:
                    failures.append(error)
                    continue
                self._prefer(first + tried, failures)
                return replace(answer, repeated=answer.repeated or repeated or bool(failures))
            electing = any(isinstance(failure, NoQuorum) for failure in failures)
            if not electing or time.monotonic() + pause_seconds >= deadline:
                raise StoreUnavailable("; ".join(map(str, failures))) from failures[-1]
            self.closed.wait(pause_seconds)
            pause_seconds *= 2
            repeated = True
        raise self.closed_error()

    def closed_error(self) -> StoreUnavailable:
        """What calls after ``close`` raise."""
        return StoreUnavailable(f"{self.target.url}: the store is closed")

    def _prefer(self, number: int, failures: list[StoreUnavailable]) -> None:
        number %= len(self)
        if failures and number != self._preferred:
            log.warning(
                "store_endpoint_changed", endpoint=str(self.server(number).endpoint), reason=str(failures[0])
            )
            self._preferred = number

    def each(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """``function`` of every item, a few at a time. After the first error nothing new is begun."""
        failed = threading.Event()

        def guarded(item: T) -> None:
            if failed.is_set():
                return
            try:
                function(item)
            except BaseException:
                failed.set()
                raise

        todo = list(items)
        if self.closed.is_set():
            raise self.closed_error()
        if len(todo) == 1:
            function(todo[0])
            return
        futures = [self._pool.submit(guarded, item) for item in todo]
        wait(futures)
        for future in futures:
            future.result()

    def close(self) -> None:
        """Free threads and connections; calls after this fail."""
        self.closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for server in self._servers:
            server.close()
