"""Which task wants the notifications of which channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from celery_pgleader.config import check_channel

TaskT = TypeVar("TaskT")

_registered: list[tuple[str, Any]] = []


def on_notification(channel: str) -> Callable[[TaskT], TaskT]:
    """Have a task called with the JSON payload of each notification on a channel.

        @on_notification("orders")
        @app.task
        def on_order(order): ...

    Args:
        channel: the channel's exact name.

    Raises:
        ConfigurationError: Postgres would not take the name.

    """
    check_channel("on_notification", channel)

    def register(task: TaskT) -> TaskT:
        _registered.append((channel, task))
        return task

    return register


def routes(app: Any, configured: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the names of an app's tasks by channel: those configured, then those registered.

    Args:
        app: the Celery app. Tasks registered by other apps of the process are left out.
        configured: the setting `pgleader_channels`.

    """
    found = dict(configured)
    for channel, task in _registered:
        name = task.name
        if name in app.tasks and name not in found.get(channel, ()):
            found[channel] = (*found.get(channel, ()), name)
    return found
