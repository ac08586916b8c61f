"""The status role's HTTP interface: /healthz, /readyz, /metrics, /services, /problems and /proxy.

Endpoints are plain functions, which Starlette calls in worker threads: a large answer delays no other.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from discovery.haproxy.report import PROXY
from discovery.status.metrics import Metrics
from discovery.status.view import StatusView
from discovery.views import problems_document, proxy_document, services_document

_FRESH = {"Cache-Control": "no-store"}


def application(view: StatusView, metrics: Metrics) -> Starlette:
    """The ASGI application; GET and HEAD on these paths, else 404 or 405."""
    return Starlette(
        routes=[
            Route("/healthz", _states(view.health)),
            Route("/readyz", _states(view.readiness)),
            Route("/metrics", _metrics(metrics)),
            Route("/services", _services(view)),
            Route("/problems", _problems(view)),
            Route("/proxy", _proxy(view)),
        ]
    )


def _states(ask: Callable[[], Mapping[str, bool]]) -> Callable[[Request], Response]:
    """200 when every part is as it should be, else 503; the body names those that are not."""

    def endpoint(_request: Request) -> Response:
        parts = dict(sorted(ask().items()))
        failing = [name for name, good in parts.items() if not good]
        body = {"ok": not failing, "failing": failing, "parts": parts}
        return JSONResponse(body, status_code=503 if failing else 200, headers=_FRESH)

    return endpoint


def _metrics(metrics: Metrics) -> Callable[[Request], Response]:
    def endpoint(_request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST} | _FRESH)

    return endpoint


def _services(view: StatusView) -> Callable[[Request], Response]:
    """What is served and what is not; 503 while that is unknown, which is not the same as nothing."""

    def endpoint(_request: Request) -> Response:
        catalog = view.catalog()
        if catalog is None:
            return JSONResponse({"error": "the store has not been read yet"}, status_code=503, headers=_FRESH)
        return JSONResponse(services_document(catalog, view.problems()), headers=_FRESH)

    return endpoint


def _problems(view: StatusView) -> Callable[[Request], Response]:
    """What is not as written, and on this node; small however many services there are."""

    def endpoint(_request: Request) -> Response:
        body = problems_document(view.node, view.store, view.catalog(), view.problems(), view.proxy())
        return JSONResponse(body, headers=_FRESH)

    return endpoint


def _proxy(view: StatusView) -> Callable[[Request], Response]:
    """What HAProxy does, and what was done to it; 404 where there is no such role."""

    def endpoint(_request: Request) -> Response:
        proxy = view.proxy()
        if proxy is None:
            return JSONResponse({"error": "no proxy role runs here"}, status_code=404, headers=_FRESH)
        error = next((each.error for each in view.appliers() if each.name == PROXY), None)
        return JSONResponse(proxy_document(proxy, error), headers=_FRESH)

    return endpoint
