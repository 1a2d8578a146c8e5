"""Which tasks get the notifications of which channel, and how."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_pgleader.errors import ConfigurationError, refused

# PostgreSQL cuts identifiers, and so channel names, at NAMEDATALEN - 1 bytes.
MAX_CHANNEL_BYTES = 63
DECODERS = ("json", "text")
# Wakes the leader when a durable notification was written.
WAKE_CHANNEL = "pgleader"
# Wakes the leader when an operator has ordered something.
ORDERS_CHANNEL = "pgleader_orders"


@dataclass(frozen=True)
class Route:
    """One task of a channel.

    Attributes:
        task: name of the task.
        queue: where its messages go; by default where the task's own do. With a queue the task may be one that this
            app does not know.
        decode: what a raw payload becomes: `json`, its value, or `text`, as it is. Default `json`. A durable payload
            is a JSON value in any case; with `text` the task gets it as JSON text.
        options: other options of `apply_async`.
        deduplicate: do not run the same durable notification again when its message is delivered again. Default
            `False`.

    """

    task: str
    queue: str | None = None
    decode: str = "json"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    deduplicate: bool = False


FIELDS = [item.name for item in dataclasses.fields(Route)]


def check_channel(setting: str, channel: object) -> str:
    """Return `channel` if PostgreSQL would take it as a channel name.

    Raises:
        ConfigurationError: it would not; the message names `setting`.

    """
    if not isinstance(channel, str) or not channel or "\0" in channel:
        raise refused(setting, channel, "a channel name must be a non-empty string without NUL")
    try:
        size = len(channel.encode())
    except UnicodeEncodeError:
        raise refused(setting, channel, "a channel name must be valid Unicode") from None
    if size > MAX_CHANNEL_BYTES:
        raise refused(setting, channel, f"a channel name has at most {MAX_CHANNEL_BYTES} bytes, this one {size}")
    return channel


def read_channels(setting: str, value: object) -> Mapping[str, tuple[Route, ...]]:
    """Return routes by channel.

    Raises:
        ConfigurationError: something in it cannot work; the message names the setting, the value and the rule.

    """
    if not isinstance(value, Mapping):
        raise refused(setting, value, 'must be a dict such as {"orders": "proj.tasks.on_order"}')
    channels = {}
    for channel, given in value.items():
        routes = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not routes:
            raise refused(setting, {channel: given}, "each channel must have a task")
        checked = check_channel(setting, channel)
        if checked in {WAKE_CHANNEL, ORDERS_CHANNEL}:
            raise refused(setting, channel, "this channel is taken: it wakes the leader")
        read = tuple(read_route(f"{setting}[{channel!r}]", route) for route in routes)
        if len({route.task for route in read}) < len(read):
            # Task ids are made of the notification and the task's name.
            raise refused(setting, {channel: given}, "each task may stand once in a channel")
        channels[checked] = read
    return channels


def read_route(setting: str, value: object) -> Route:
    """Return a route: from a task's name, or a dict of a route's fields.

    Raises:
        ConfigurationError: it cannot be one; the message names the setting, the value and the rule.

    """
    if isinstance(value, Route):
        return value
    given = {"task": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("task"), str) or not given["task"]:
        raise refused(setting, value, 'must be a task name, or a dict such as {"task": "proj.on_order"}')
    for name in given:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, n=1)
            raise ConfigurationError(
                f"{setting}[{name!r}]: no such option{f'; did you mean {near[0]}?' if near else ''}"
            )
    route = Route(**given)
    if route.decode not in DECODERS:
        raise refused(f"{setting}['decode']", route.decode, f"must be one of {', '.join(DECODERS)}")
    if route.queue is not None and (not isinstance(route.queue, str) or not route.queue):
        raise refused(f"{setting}['queue']", route.queue, "must be the name of a queue")
    if not isinstance(route.deduplicate, bool):
        raise refused(f"{setting}['deduplicate']", route.deduplicate, "must be True or False")
    if not isinstance(route.options, Mapping):
        raise refused(f"{setting}['options']", route.options, "must be a dict of options of apply_async")
    return route
