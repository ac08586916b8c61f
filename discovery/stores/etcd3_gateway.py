"""HTTP to etcd's v3 JSON gateway: endpoints with failover, tokens, time-outs, errors in plain words."""

import errno
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import structlog
import urllib3
from urllib3 import exceptions

from discovery.errors import HistoryLost, StoreError, StoreRefused, StoreUnavailable
from discovery.stores.endpoints import Endpoint, Target
from discovery.stores.etcd3_wire import UNINTELLIGIBLE, AuthDisabled, Body, TokenInvalid, decode_error

log = structlog.get_logger(__name__)

T = TypeVar("T")

PAUSE_SECONDS = 0.1
CHUNK_BYTES = 1 << 20

# A peer that vanished without a word (a cut cable, a forgotten NAT entry) ends the connection after
# 10 + 3 * 5 s, idle or not.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class EndpointUnfit(StoreRefused):
    """This endpoint is not what we can speak with (no v3 gateway, TLS); another may be."""


class Gateway:
    """Calls of the v3 gateway on whichever endpoint works. Thread-safe.

    A call takes at most ``timeout_seconds`` in all. Every endpoint not yet tried is left an equal share of
    what remains, so that one that hangs leaves time for the others; the one that answered is tried first
    the next time.
    """

    def __init__(self, target: Target, timeout_seconds: float, context: ssl.SSLContext | None) -> None:
        self.endpoints = target.endpoints
        self.timeout_seconds = timeout_seconds
        self.closed = threading.Event()
        self._target = target
        self._preferred = 0
        self._token: str | None = None
        self._heard_at: dict[Endpoint, float] = {}
        self._pools = {endpoint: _pool(endpoint, context) for endpoint in target.endpoints}

    @property
    def preferred(self) -> int:
        """The index of the endpoint that answered last."""
        return self._preferred

    def silent_seconds(self, endpoint: Endpoint) -> float:
        """For how long this endpoint has answered nobody; infinite when it never did."""
        return time.monotonic() - self._heard_at.get(endpoint, -math.inf)

    def close(self) -> None:
        """Free all connections; watches end."""
        self.closed.set()
        for pool in self._pools.values():
            pool.close()

    # ---- calls --------------------------------------------------------------------------------------

    def call(self, path: str, body: Body, decode: Callable[[Body], T]) -> T:
        """POST ``body`` to ``/v3/<path>`` and decode the answer.

        Tries each endpoint; goes round again, while there is time, if one of them said that its trouble
        passes (an election). Raises StoreUnavailable when none answers, and what the store said when it
        refused.
        """
        deadline = time.monotonic() + self.timeout_seconds
        while True:
            answered = False
            failures: dict[Endpoint, StoreError] = {}
            first, count = self._preferred, len(self.endpoints)
            for tried in range(count):
                index = (first + tried) % count
                endpoint = self.endpoints[index]
                left = max(deadline - time.monotonic(), 0)
                try:
                    answer = self.ask(endpoint, path, body, left / (count - tried), decode)
                except (_Passing, _Silent, EndpointUnfit) as error:
                    failures[endpoint] = error
                    answered = answered or isinstance(error, _Passing)
                    continue
                self._prefer(index)
                return answer
            if not answered or time.monotonic() + PAUSE_SECONDS > deadline or self.closed.wait(PAUSE_SECONDS):
                raise _summary(failures)

    def _prefer(self, index: int) -> None:
        if self._preferred != index:
            log.info(
                "store_endpoint_changed",
                endpoint=str(self.endpoints[index]),
                was=str(self.endpoints[self._preferred]),
            )
            self._preferred = index

    def ask(
        self, endpoint: Endpoint, path: str, body: Body, seconds: float, decode: Callable[[Body], T]
    ) -> T:
        """One call on this endpoint alone, in about ``seconds``; with a new token if the old one is spent."""
        deadline = time.monotonic() + seconds
        token = self._authenticated(endpoint, deadline)
        try:
            answer = self._post(endpoint, path, body, deadline, token)
        except TokenInvalid:
            if self._target.username is None:
                raise StoreRefused(f"etcd at {endpoint} asks for a user and password") from None
            self._token = None
            answer = self._post(endpoint, path, body, deadline, self._authenticated(endpoint, deadline))
        self._heard_at[endpoint] = time.monotonic()
        try:
            return decode(answer)
        except UNINTELLIGIBLE as error:
            raise EndpointUnfit(f"{endpoint} answers /v3/{path} with something else than etcd's") from error

    def stream(self, endpoint: Endpoint, path: str, body: Body, seconds: float) -> "Stream":
        """Begin a streaming call on this endpoint; its first message must come within ``seconds``.

        Uses the token of an ``ask`` that was just answered.
        """
        response = self._request(endpoint, path, body, time.monotonic() + seconds, self._token)
        if response.status != 200:
            raise _refusal(endpoint, path, response.status, _read(endpoint, response, seconds))
        # The time-out was for the beginning; silence afterwards is no fault (see etcd3_watch).
        connection = getattr(response.connection, "sock", None)
        if connection is not None:
            connection.settimeout(None)
        return Stream(endpoint, response)

    # ---- tokens -------------------------------------------------------------------------------------

    def _authenticated(self, endpoint: Endpoint, deadline: float) -> str | None:
        """The token, fetched if there is none; None where none is needed, empty if the server wants none.

        Two threads may fetch one at the same time; both tokens are good.
        """
        name, password = self._target.username, self._target.password
        if name is None or self._token is not None:
            return self._token
        body = {"name": name, "password": password}
        try:
            token = str(self._post(endpoint, "auth/authenticate", body, deadline, None).get("token", ""))
        except AuthDisabled:
            log.info("store_password_not_needed", endpoint=str(endpoint))
            token = ""
        self._token = token
        return token

    # ---- HTTP ---------------------------------------------------------------------------------------

    def _post(self, endpoint: Endpoint, path: str, body: Body, deadline: float, token: str | None) -> Body:
        response = self._request(endpoint, path, body, deadline, token)
        data = _read(endpoint, response, deadline - time.monotonic())
        if response.status != 200:
            raise _refusal(endpoint, path, response.status, data)
        try:
            message = json.loads(data)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise EndpointUnfit(f"{endpoint} answers /v3/{path} with no JSON object; is it an etcd?")
        if "error" in message:
            raise named(endpoint, decode_error(message))
        return message

    def _request(
        self, endpoint: Endpoint, path: str, body: Body, deadline: float, token: str | None
    ) -> urllib3.BaseHTTPResponse:
        seconds = max(deadline - time.monotonic(), 0.001)
        # A member without a leader says so at once, rather than let the call hang.
        headers = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}
        if token:
            headers["Authorization"] = token
        try:
            return self._pools[endpoint].urlopen(
                "POST",
                f"/v3/{path}",
                body=json.dumps(body).encode(),
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(total=seconds),
                preload_content=False,
            )
        except exceptions.HTTPError as error:
            raise _silence(endpoint, error) from error


class Stream:
    """The lines of a streaming answer. One thread reads, any may ``close``."""

    def __init__(self, endpoint: Endpoint, response: urllib3.BaseHTTPResponse) -> None:
        self._endpoint = endpoint
        self._response = response

    def lines(self) -> Iterator[bytes]:
        """Each line without its end, until the server ends it; raises StoreUnavailable if it breaks."""
        parts: list[bytes] = []
        try:
            for chunk in self._response.stream(CHUNK_BYTES):
                *ends, rest = chunk.split(b"\n")
                for end in ends:
                    yield b"".join([*parts, end])
                    parts = []
                parts.append(rest)
        except exceptions.HTTPError as error:
            raise _silence(self._endpoint, error) from error
        finally:
            self._response.close()

    def close(self) -> None:
        """End it, also for a thread that waits in ``lines``."""
        try:
            self._response.shutdown()
        except (RuntimeError, ValueError, OSError):
            # It has ended already.
            self._response.close()


class _Silent(StoreUnavailable):
    """An endpoint gave no answer."""


class _Passing(StoreUnavailable):
    """An endpoint answered that it cannot just now."""


def _pool(endpoint: Endpoint, context: ssl.SSLContext | None) -> urllib3.HTTPConnectionPool:
    if context is None:
        return urllib3.HTTPConnectionPool(
            endpoint.host, endpoint.port, maxsize=4, socket_options=_SOCKET_OPTIONS
        )
    return urllib3.HTTPSConnectionPool(
        endpoint.host, endpoint.port, maxsize=4, socket_options=_SOCKET_OPTIONS, ssl_context=context
    )


def _read(endpoint: Endpoint, response: urllib3.BaseHTTPResponse, seconds: float) -> bytes:
    """The whole body. Each read is bounded by the request's time-out, all of them by ``seconds``."""
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    try:
        for part in response.stream(CHUNK_BYTES):
            parts.append(part)
            if time.monotonic() > deadline:
                response.close()
                raise _Silent(f"etcd at {endpoint} takes too long to send its answer")
    except exceptions.HTTPError as error:
        raise _silence(endpoint, error) from error
    return b"".join(parts)


def _refusal(endpoint: Endpoint, path: str, status: int, data: bytes) -> StoreError:
    """What an HTTP status other than 200 means."""
    try:
        message = json.loads(data)
    except ValueError:
        message = None
    coded = isinstance(message, dict) and "message" in message
    if status == 404 and (not coded or message["message"] == "Not Found"):
        return EndpointUnfit(
            f"{endpoint} speaks no etcd v3 gateway (it has no /v3/{path}): etcd older than 3.4 has none, "
            "and --enable-grpc-gateway=false turns it off"
        )
    if not coded:
        return EndpointUnfit(f"{endpoint} answers HTTP status {status}; is it an etcd?")
    try:
        return named(endpoint, decode_error(message))
    except UNINTELLIGIBLE:
        return EndpointUnfit(f"{endpoint} answers HTTP status {status}; is it an etcd?")


def named(endpoint: Endpoint, error: StoreError) -> StoreError:
    """The same kind of error with the endpoint in its text."""
    if isinstance(error, StoreUnavailable):
        return _Passing(f"etcd at {endpoint} cannot answer now: {error}")
    if isinstance(error, HistoryLost):
        return error
    return type(error)(f"etcd at {endpoint} refuses: {error}")


def _silence(endpoint: Endpoint, error: exceptions.HTTPError) -> StoreError:
    """Why there is no answer, in plain words."""
    if isinstance(error, exceptions.SSLError):
        if error.args and isinstance(error.args[0], ssl.SSLEOFError):
            return _Silent(
                f"etcd at {endpoint} broke off TLS; does it speak TLS, or want a client certificate?"
            )
        return EndpointUnfit(f"TLS with etcd at {endpoint} fails: {_tls_reason(error)}")
    if isinstance(error, exceptions.NameResolutionError):
        return _Silent(f"the host of etcd at {endpoint} has no address")
    if isinstance(error, exceptions.TimeoutError) and not isinstance(error, exceptions.NewConnectionError):
        return _Silent(f"etcd at {endpoint} does not answer in time")
    cause = _os_error(error)
    if cause is not None and cause.errno == errno.ECONNREFUSED:
        return _Silent(f"nothing listens at {endpoint}")
    if isinstance(error, exceptions.NewConnectionError):
        return _Silent(f"etcd at {endpoint} cannot be reached: {cause.strerror if cause else error}")
    return _Silent(f"etcd at {endpoint} broke the connection; does it speak TLS only (etcd3+https://)?")


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _tls_reason(error: exceptions.SSLError) -> str:
    cause = error.args[0] if error.args else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    return str(getattr(cause, "reason", None) or cause)


def _summary(failures: dict[Endpoint, StoreError]) -> StoreError:
    """One error for all endpoints; a refusal only if each of them refused."""
    errors = list(failures.values())
    unfit = all(isinstance(error, EndpointUnfit) for error in errors)
    text = "; ".join(str(error) for error in errors)
    return StoreRefused(text) if unfit else StoreUnavailable(text)
