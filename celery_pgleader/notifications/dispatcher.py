"""Turns a raw notification into calls of Celery tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from celery.utils.log import get_logger

from celery_pgleader.channels import Route
from celery_pgleader.election import Term
from celery_pgleader.errors import NotificationError
from celery_pgleader.notifications.payload import Notification, decode
from celery_pgleader.spans import carry, span

logger = get_logger(__name__)


class Dispatcher:
    """Calls, for each notification, the tasks of its channel with the decoded payload.

    The message carries the headers `pgleader_channel`, `pgleader_backend_pid` and `pgleader_term`. What fails is
    counted, and logged when it happens first for its channel and kind: nobody will send it again.
    """

    def __init__(self, app: Any, channels: Mapping[str, tuple[Route, ...]]) -> None:
        """Prepare.

        Args:
            app: the Celery app that sends.
            channels: routes by channel.

        """
        self._app = app
        self._channels = channels
        self.failures: Counter[tuple[str, str]] = Counter()

    def dispatch(self, notification: Notification, term: Term) -> None:
        """Dispatch a notification. Never raises."""
        with span("dispatch", {"channel": notification.channel, "term": term.number}, sends=True):
            self._dispatch(notification, term)

    def _dispatch(self, notification: Notification, term: Term) -> None:
        headers = headers_of(notification, term.number)
        carry(headers)
        for route in self._channels[notification.channel]:
            try:
                value = decode(notification.payload) if route.decode == "json" else notification.payload
                send(self._app, route, value, headers=headers)
            except NotificationError as error:
                self._count(notification.channel, "undecodable", "dropped a notification on", error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one is to be heard
                self._count(notification.channel, route.task, f"could not send {route.task} for", error)

    def _count(self, channel: str, kind: str, what: str, error: Exception) -> None:
        self.failures[channel, kind] += 1
        if self.failures[channel, kind] == 1:
            logger.warning("pgleader: %s channel %s (further ones are counted, not logged): %s", what, channel, error)


def headers_of(notification: Notification, term: int) -> dict[str, Any]:
    """Return what a notification's message says of it."""
    return {
        "pgleader_channel": notification.channel,
        "pgleader_backend_pid": notification.backend_pid,
        "pgleader_term": term,
    }


def send(app: Any, route: Route, value: Any, **options: Any) -> Any:
    """Send a route's task."""
    headers = {**(route.options.get("headers") or {}), **(options.get("headers") or {})}
    options = {**route.options, **({"queue": route.queue} if route.queue else {}), **options, "headers": headers}
    # A task that is known here brings its own options, such as its queue.
    task = app.tasks.get(route.task)
    if task is None:
        return app.send_task(route.task, (value,), **options)
    return task.apply_async((value,), **options)
