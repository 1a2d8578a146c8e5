"""Turns a notification into calls of Celery tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.utils.log import get_logger

from celery_pgleader.election import Term
from celery_pgleader.errors import NotificationError
from celery_pgleader.notifications.payload import Notification, decode

logger = get_logger(__name__)


class Dispatcher:
    """Calls, for each notification, the tasks of its channel with the decoded payload.

    The message carries the headers `pgleader_channel`, `pgleader_backend_pid` and `pgleader_term`.
    """

    def __init__(self, app: Any, tasks: Mapping[str, tuple[str, ...]]) -> None:
        """Prepare.

        Args:
            app: the Celery app that sends.
            tasks: task names by channel.

        """
        self._app = app
        self._tasks = tasks

    def dispatch(self, notification: Notification, term: Term) -> None:
        """Dispatch a notification; what fails is logged, since nobody will send it again."""
        try:
            value = decode(notification.payload)
        except NotificationError as error:
            logger.warning("pgleader: dropped a notification on channel %s: %s", notification.channel, error)
            return
        headers = {
            "pgleader_channel": notification.channel,
            "pgleader_backend_pid": notification.backend_pid,
            "pgleader_term": term.number,
        }
        for name in self._tasks[notification.channel]:
            try:
                self._send(name, value, headers)
            except Exception:
                logger.exception("pgleader: could not send %s for channel %s", name, notification.channel)

    def _send(self, name: str, value: Any, headers: dict[str, Any]) -> None:
        # A task that is known here brings its own options, such as its queue.
        task = self._app.tasks.get(name)
        if task is None:
            self._app.send_task(name, (value,), headers=headers)
        else:
            task.apply_async((value,), headers=headers)
