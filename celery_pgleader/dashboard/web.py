"""The dashboard's web server: the page, what changes of it, orders, and metrics."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import parse_qs

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_pgleader.config import Config
from celery_pgleader.dashboard import metrics, sight
from celery_pgleader.dashboard.access import COOKIE, LASTS, Access, Visit, is_genuine
from celery_pgleader.dashboard.feed import MOST_VIEWERS, Feed
from celery_pgleader.dashboard.page import Page, view_of
from celery_pgleader.dashboard.sight import Entry, Mark, Sight, View
from celery_pgleader.dashboard.source import Source
from celery_pgleader.dashboard.watcher import State, Watcher
from celery_pgleader.operators import orders
from celery_pgleader.operators.orders import Done
from celery_pgleader.operators.words import first_line
from celery_pgleader.postgres import Session

T = TypeVar("T")

MOST_BYTES = 10_000
SLOTS_OF_ENTRY = 200
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ORDERS: Mapping[str, Callable[[Config, Session, str], Done]] = {
    "resign": lambda config, session, node: orders.resign(config, session, node or None),
    "pause": lambda config, session, _: orders.pause(config, session),
    "resume": lambda config, session, _: orders.resume(config, session),
    "run-now": orders.run_now,
}


class SecurityHeaders:
    """Adds what tells a browser to be careful."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


class Dashboard:
    """Everything that the server serves, put together."""

    def __init__(self, config: Config, zone: Any, token: str | None = None, hosts: tuple[str, ...] = ("*",)) -> None:
        """Put it together.

        Args:
            config: which election, and where.
            zone: the time zone in which times are shown.
            token: what has to be given by those who order something; none if nobody may.
            hosts: names by which the server may be asked for.

        """
        self._config = config
        self.feed = Feed()
        self._source = Source(config)
        self._scraped = Source(config)
        self.watcher = Watcher(config, self._source, self.feed.ring)
        self._access = Access(token)
        self._page = Page(config, zone, self._access, version("celery-pgleader"))
        self._rendered: dict[View, tuple[int, Mapping[str, str]]] = {}
        routes = [
            Route("/", self._show),
            Route("/events", self._events),
            Route("/entry", self._entry),
            Route("/metrics", self._metrics),
            Mount("/static", StaticFiles(packages=[("celery_pgleader.dashboard", "static")])),
        ]
        if token is not None:
            routes += [
                Route("/sign-in", self._sign_in, methods=["GET", "POST"]),
                Route("/sign-out", self._sign_out, methods=["POST"]),
                Route("/orders/{order}", self._order, methods=["POST"]),
            ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._live,
            middleware=[
                Middleware(SecurityHeaders),
                # So that no name that leads here makes a page of somebody else's one of ours.
                Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
                Middleware(GZipMiddleware),
            ],
        )

    @asynccontextmanager
    async def _live(self, _app: Starlette) -> AsyncIterator[None]:
        self.feed.open()
        self.watcher.start()
        try:
            yield
        finally:
            await run_in_threadpool(self.watcher.stop)
            self._source.close()
            self._scraped.close()

    async def _show(self, request: Request) -> Response:
        view = view_of(request.query_params)
        state = await run_in_threadpool(self.watcher.glance, view)
        return HTMLResponse(self._page.whole(state, view, self._visit(request)))

    async def _events(self, request: Request) -> Response:
        if self.feed.is_full:
            return PlainTextResponse("too many look already", 503)
        view = view_of(request.query_params)
        return StreamingResponse(
            self._stream(view), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def _stream(self, view: View) -> AsyncIterator[str]:
        # So that all of the view is there when the first event is sent.
        await run_in_threadpool(self.watcher.glance, view)
        self.watcher.enter(view)
        try:
            async for event in self.feed.stream(lambda: self.watcher.state, functools.partial(self._seen, view=view)):
                yield event
        finally:
            self.watcher.leave(view)

    def _seen(self, state: State, *, view: View) -> Mapping[str, Any]:
        return {
            "now": state.sight.now.timestamp() if state.sight is not None else None,
            "away": state.away_since is not None,
            "leader": state.sight.overview.leading_node if state.sight is not None else None,
            "parts": {
                **self._parts(state, view),
                "series": {"lateness": state.series.lateness, "backlog": state.series.backlog},
            },
        }

    def _parts(self, state: State, view: View) -> Mapping[str, str]:
        """Return what a view shows, rendered once for all who look at it."""
        version, parts = self._rendered.get(view, (None, {}))
        if version != state.version:
            if len(self._rendered) >= MOST_VIEWERS:
                self._rendered.clear()
            parts = self._page.parts(state, view)
            self._rendered[view] = state.version, parts
        return parts

    async def _entry(self, request: Request) -> Response:
        name = request.query_params.get("name", "")

        def look(config: Config, session: Session) -> tuple[Sight, Entry | None, list[Mark]]:
            seen = sight.see(config, session, [])
            entry = next((entry for entry in seen.entries if entry.name == name), None)
            return seen, entry, sight.latest(config, session, [name], SLOTS_OF_ENTRY)[name] if entry else []

        try:
            seen, entry, marks = await run_in_threadpool(self._source.ask, look)
        except psycopg.Error as error:
            return self._trouble(503, "Postgres is away", f"cannot ask {self._config.database}: {first_line(error)}")
        if entry is None:
            return self._trouble(404, "No such entry", f"no leader has an entry {name!r} in its schedule")
        return HTMLResponse(self._page.entry(seen, entry, marks))

    async def _metrics(self, _request: Request) -> Response:
        try:
            found = await run_in_threadpool(self._scraped.ask, metrics.facts)
        except psycopg.Error:
            found = None
        return Response(metrics.exposition(self._config.election, found), media_type=CONTENT_TYPE_LATEST)

    async def _sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return HTMLResponse(self._page.sign_in(refused=False))
        form = await _form(request)
        cookie = self._access.sign_in(form.get("token", ""))
        if cookie is None:
            return HTMLResponse(self._page.sign_in(refused=True), 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=round(LASTS),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def _sign_out(self, request: Request) -> Response:
        visit, form = self._visit(request), await _form(request)
        if visit is None or not is_genuine(visit, form.get("form_token", "")):
            return self._refuse()
        self._access.sign_out(request.cookies[COOKIE])
        response = RedirectResponse("/", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def _order(self, request: Request) -> Response:
        visit, form = self._visit(request), await _form(request)
        if visit is None or not is_genuine(visit, form.get("form_token", "")):
            return self._refuse()
        order = ORDERS.get(request.path_params["order"])
        if order is None:
            return self._trouble(404, "No such order", f"there are {', '.join(ORDERS)}")
        about = form.get("about", "")
        try:
            done = await run_in_threadpool(self._source.order, lambda config, session: order(config, session, about))
        except orders.Refused as refused:
            visit.told = False, str(refused)
        except psycopg.Error as error:
            visit.told = False, f"cannot ask {self._config.database}: {first_line(error)}"
        else:
            visit.told = True, done.words
        return RedirectResponse("/" + (form.get("here", "") if form.get("here", "").startswith("?") else ""), 303)

    def _visit(self, request: Request) -> Visit | None:
        return self._access.visit(request.cookies.get(COOKIE))

    def _refuse(self) -> Response:
        return self._trouble(403, "Not signed in", "orders are taken from those only who have signed in with the token")

    def _trouble(self, code: int, title: str, words: str) -> Response:
        return HTMLResponse(self._page.trouble(title, words), code)


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form that was sent."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return {}
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
