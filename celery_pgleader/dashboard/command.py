"""`celery -A proj pgleader dashboard`: serves until it is interrupted."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from celery_pgleader.config import Config
from celery_pgleader.dashboard.access import LEAST_TOKEN
from celery_pgleader.dashboard.web import Dashboard
from celery_pgleader.errors import ConfigurationError

# By these a browser on this host may ask for it.
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class CannotServe(Exception):
    """The dashboard cannot be started as it was asked for."""


def serve(
    app: Any,
    bind: str,
    *,
    allow_actions: bool,
    token: str | None,
    say: Callable[[str], object],
    warn: Callable[[str], object],
) -> None:
    """Serve an app's dashboard until it is interrupted.

    Args:
        app: the Celery app.
        bind: where to listen.
        allow_actions: whether those who have the token may order something.
        token: the token.
        say: tells where it is, once it can be looked at.
        warn: tells what to be careful about.

    Raises:
        CannotServe: it cannot.

    """
    if allow_actions and len(token or "") < LEAST_TOKEN:
        raise CannotServe(
            f"--allow-actions needs a token of at least {LEAST_TOKEN} characters, in PGLEADER_DASHBOARD_TOKEN"
        )
    try:
        config = Config.from_app(app)
    except ConfigurationError as error:
        raise CannotServe(str(error)) from error
    host, port = _read(bind)
    local = _is_loopback(host)
    listening = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    dashboard = Dashboard(config, app.timezone, token if allow_actions else None, (*LOCAL, name) if local else ("*",))
    server = Server(
        uvicorn.Config(
            dashboard.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            proxy_headers=True,
        ),
        dashboard,
    )
    with listening:
        say(f"http://{name}:{listening.getsockname()[1]}/ shows election {config.election} ({config.database})")
        if not local:
            warn("whoever can reach this address can look; see the documentation for what to put in front of it")
        # Which it raises again when it has stopped.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


class Server(uvicorn.Server):
    """Ends the streams of those who look when it is to stop, instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, dashboard: Dashboard) -> None:
        """Prepare."""
        super().__init__(config)
        self._dashboard = dashboard

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop. Whoever asks again has to wait no more than a second."""
        if not self.should_exit:
            self._dashboard.feed.close()
            super().handle_exit(sig, frame)


def _read(bind: str) -> tuple[str, int]:
    host, colon, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise CannotServe(f"--bind {bind}: must be an address and a port, such as 127.0.0.1:5556")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=128)
    except OSError as error:
        raise CannotServe(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
