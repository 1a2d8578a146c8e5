"""Which task wants the notifications of which channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from celery_pgleader.channels import Route, read_channels

TaskT = TypeVar("TaskT")

_registered: list[tuple[str, Any, dict[str, Any]]] = []


def on_notification(channel: str, **options: Any) -> Callable[[TaskT], TaskT]:
    """Have a task called with the payload of each notification on a channel.

        @on_notification("orders")
        @app.task
        def on_order(order): ...

    Args:
        channel: the channel's exact name.
        options: `queue`, `decode`, `options` and `deduplicate`, as in the setting `pgleader_channels`.

    Raises:
        ConfigurationError: Postgres would not take the name, or an option cannot work.

    """
    read_channels("on_notification", {channel: {"task": "any", **options}})

    def register(task: TaskT) -> TaskT:
        _registered.append((channel, task, options))
        return task

    return register


def routes(app: Any, configured: Mapping[str, tuple[Route, ...]]) -> dict[str, tuple[Route, ...]]:
    """Return an app's routes by channel: those configured, then those registered.

    Args:
        app: the Celery app. Tasks registered by other apps of the process are left out.
        configured: the setting `pgleader_channels`.

    """
    found = dict(configured)
    for channel, task, options in _registered:
        known = found.get(channel, ())
        if task.name in app.tasks and task.name not in {route.task for route in known}:
            found[channel] = (*known, Route(task.name, **options))
    return found
