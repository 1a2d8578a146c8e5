"""For tests of an app's own tasks, without Postgres, broker and worker: a node that leads when the test says so.

    def test_the_index_is_rebuilt(pgleader):
        pgleader.gain()
        assert rebuild_index.delay().get() == "rebuilt"

With pytest the fixture `pgleader` is a `FakeNode`; elsewhere it is a context manager.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any
from unittest import mock
from uuid import uuid4

from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.exceptions import Retry

from celery_pgleader.beat.slots import task_id_of as task_id_of_slot
from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.notifications import dispatcher, relay, sending
from celery_pgleader.notifications.payload import Notification, decode
from celery_pgleader.notifications.registry import routes
from celery_pgleader.policies import policy_of
from celery_pgleader.signals import leadership_gained, leadership_lost
from celery_pgleader.slot import HEADER, Slot
from celery_pgleader.store import Letter
from celery_pgleader.store.sql import NOTIFY
from celery_pgleader.tasks.run_guard import RunGuard
from celery_pgleader.tasks.trust_page import VARIABLE, TrustPage

# What the guard puts on the class of each task.
GUARD_ATTRIBUTES = ("before_start", "pgleader_guard")


@dataclass(frozen=True)
class SentNotification:
    """A notification that `notify` would have sent.

    Attributes:
        channel: the channel.
        payload: as its tasks get it: after a round trip through JSON.
        key: its key, or none.
        durable: whether it is durable, or raw.
        connection: in whose transaction it would have been written; none if in one of its own.

    """

    channel: str
    payload: Any
    key: str | None
    durable: bool
    connection: Any


class FakeNode:
    """A node that stands for no election: it gains and loses leadership when it is told to.

    From `with FakeNode(app) as node:` to the end of the block, tasks of the app that run in this process (`apply`, or
    `delay` with `task_always_eager`) run as on a worker that is this node, and `notify` sends nothing. So do those that
    are registered within the block, from the next call of a method of this class on.
    """

    def __init__(self, app: Any, name: str = "fake@localhost") -> None:
        """Prepare a node that does not lead.

        Args:
            app: the Celery app; its `pgleader_*` settings count, but for the database.
            name: the node's.

        Raises:
            ConfigurationError: a setting of the app that cannot work.

        """
        self._app = app
        self._config = Config.from_app(app, {"database_url": "dbname=none"})
        self._name = name
        # Number of the present term; while this node does not lead, another one does.
        self._term = 1
        self._letters = itertools.count(1)
        self._guard = _Guard(self._config, name, _RunsInMemory)
        self._exit = ExitStack()
        self._page: TrustPage | None = None
        self.leadership = Leadership(tell=self._tell)
        #: What `notify` would have sent, oldest first.
        self.sent: list[SentNotification] = []

    def __enter__(self) -> FakeNode:
        """Take the place of a worker."""
        self._exit.callback(_set_variable, os.environ.get(VARIABLE))
        self._page = TrustPage()
        self._exit.callback(self._page.close)
        self._exit.enter_context(mock.patch.object(sending, "deliver", self._record))
        self._guard_tasks()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave everything as it was."""
        self._exit.close()

    def gain(self, reason: str = "gained in a test") -> Term:
        """Gain leadership: a new term begins, after the present one was lost, if there is one.

        Receivers of `leadership_gained` are called before it returns; what they raise, it raises.
        """
        if self.leadership.term is not None:
            self.lose()
        self._guard_tasks()
        self._term += 1
        term = Term(self._term, self._config.election, self._name, backend_pid=0)
        self.leadership.gain(term, math.inf, reason)
        self._send(leadership_gained, term, reason)
        return term

    def lose(self, reason: str = "lost in a test") -> None:
        """Lose leadership, if this node leads; may be called in the middle of a task.

        Receivers of `leadership_lost` are called before it returns; what they raise, it raises.
        """
        term = self.leadership.term
        if term is not None:
            self.leadership.lose(term, reason)
            self._term += 1
            self._send(leadership_lost, term, reason)

    def publish(self, entry: str, *, at: datetime | None = None, catch_up: bool = False) -> Any:
        """Run the task of an entry of `beat_schedule` for a slot, as if a leader had published it.

        Args:
            entry: its name.
            at: when the slot is due, with a time zone; by default now. The same slot has the same task id again.
            catch_up: what `current_slot()` says of that.

        Returns:
            Celery's `EagerResult`. Its state is `IGNORED` if the entry's policy does not let it run, and `REJECTED` if
            the task is leader-only and this node does not lead.

        Raises:
            LookupError: there is no such entry, or no such task.
            ValueError: `at` has no time zone.

        """
        found = self._entry(entry)
        at = datetime.now(timezone.utc) if at is None else at
        if at.tzinfo is None:
            raise ValueError(f"at = {at!r}: must have a time zone")
        policy = policy_of(self._config.schedule, entry)
        slot = Slot(
            election=self._config.election,
            entry=entry,
            at=at.astimezone(timezone.utc),
            term=self._term,
            catch_up=catch_up,
            deduplicate=policy.deduplicate,
            overlap=policy.overlap.value,
        )
        return self._run(
            found.task or "",
            [_value_of(argument) for argument in found.args or ()],
            {name: _value_of(argument) for name, argument in (found.kwargs or {}).items()},
            task_id=task_id_of_slot(slot.election, slot.entry, slot.at),
            headers={**((found.options or {}).get("headers") or {}), HEADER: slot.to_header()},
        )

    def dispatch(self, channel: str, payload: Any, *, key: str | None = None) -> list[Any]:
        """Run the tasks of a channel for a durable notification, as if a leader had dispatched it.

        Tasks that the app does not know, and that are routed to a queue, are left out.

        Args:
            channel: the channel's exact name.
            payload: a JSON value.
            key: what the message says of it.

        Returns:
            The results, in the order of the routes. See `publish` for their states.

        Raises:
            LookupError: no task is routed from that channel, or the app does not know it.
            NotificationError: `notify` would not send this payload.

        """
        text = sending.encode_durable(payload)
        letter = Letter(next(self._letters), uuid4(), channel, key, text, attempts=0)
        return [
            self._run(
                route.task,
                [relay.value_of(text) if route.decode == "json" else text],
                task_id=relay.task_id_of(letter, route),
                headers={**(route.options.get("headers") or {}), **relay.headers_of(letter, route, self._term)},
            )
            for route in self._routes(channel)
        ]

    def dispatch_raw(self, channel: str, payload: str) -> list[Any]:
        """Run the tasks of a channel for a raw notification.

        Args:
            channel: the channel's exact name.
            payload: its text, as `pg_notify()` gets it.

        Returns:
            The results, in the order of the routes.

        Raises:
            LookupError: no task is routed from that channel, or the app does not know it.
            NotificationError: the payload cannot be decoded; a leader would log that and drop it.

        """
        notification = Notification(channel, payload, backend_pid=0)
        return [
            self._run(
                route.task,
                [decode(payload) if route.decode == "json" else payload],
                task_id=str(uuid4()),
                headers={
                    **(route.options.get("headers") or {}),
                    **dispatcher.headers_of(notification, self._term),
                },
            )
            for route in self._routes(channel)
        ]

    def _entry(self, name: str) -> ScheduleEntry:
        schedule = self._app.conf.beat_schedule
        if name not in schedule:
            raise LookupError(f"no entry {name} in beat_schedule{_did_you_mean(name, schedule)}")
        given = schedule[name]
        return given if isinstance(given, ScheduleEntry) else ScheduleEntry(**{**given, "name": name, "app": self._app})

    def _routes(self, channel: str) -> list[Route]:
        known = routes(self._app, self._config.channels)
        if channel not in known:
            raise LookupError(f"no task is routed from channel {channel}{_did_you_mean(channel, known)}")
        return [route for route in known[channel] if route.task in self._app.tasks or route.queue is None]

    def _run(self, name: str, args: list[Any], kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        self._guard_tasks()
        task = self._app.tasks.get(name)
        if task is None:
            raise LookupError(f"no task {name} in app {self._app.main}{_did_you_mean(name, self._app.tasks)}")
        run: Callable[..., Any] = partial(task.apply, args, kwargs, **options)
        retries = 0
        while True:
            try:
                return run(throw=True)
            except Retry as retry:
                again: Any = retry
                if again.sig is None:
                    raise
                # As Celery does where errors are not raised.
                retries += 1
                run = partial(again.sig.apply, retries=retries)

    def _guard_tasks(self) -> None:
        """Guard the tasks of the app that are there by now."""
        for task in self._app.tasks.values():
            cls = type(task)
            if cls.__dict__.get("pgleader_guard") is not self._guard:
                had = {name: cls.__dict__[name] for name in GUARD_ATTRIBUTES if name in cls.__dict__}
                self._exit.callback(_put_back, cls, had)
        self._guard.install(self._app)

    def _tell(self, term: int, trusted_until: float) -> None:
        if self._page is None:
            raise RuntimeError("a FakeNode leads inside of `with` only")
        self._page.write(term, trusted_until)
        self._page.give_turn(term)

    def _send(self, signal: Any, term: Term, reason: str) -> None:
        for _receiver, response in signal.send(sender=self._name, term=term, reason=reason):
            # Where Celery sends it, it is logged.
            if isinstance(response, Exception):
                raise response

    def _record(self, connection: Any, statement: str, parameters: dict[str, Any]) -> None:
        durable = statement == NOTIFY
        payload = json.loads(parameters["payload"])
        self.sent.append(SentNotification(parameters["channel"], payload, parameters.get("key"), durable, connection))


class _Guard(RunGuard):
    """The guard of a worker's tasks, without a database."""

    def before_start(self, task: Any, task_id: str) -> None:
        # In a worker each header is an attribute of the request.
        for name, value in (task.request.headers or {}).items():
            setattr(task.request, name, value)
        super().before_start(task, task_id)


class _RunsInMemory:
    """The runs of one test."""

    def __init__(self, *_: object) -> None:
        self._going_on: set[int] = set()
        self._finished: set[str] = set()

    def begin(self, keys: Iterable[int]) -> bool:
        wanted = set(keys)
        if wanted & self._going_on:
            return False
        self._going_on |= wanted
        return True

    def has_finished(self, task_id: str) -> bool:
        return task_id in self._finished

    def finish(self, task_id: str) -> None:
        self._finished.add(task_id)

    def skip(self, election: str, entry: str, slot: datetime, reason: str) -> None:
        """Nothing is written down."""

    def end(self, keys: Iterable[int]) -> None:
        self._going_on -= set(keys)


def _value_of(argument: Any) -> Any:
    return argument() if isinstance(argument, BeatLazyFunc) else argument


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _set_variable(value: str | None) -> None:
    if value is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = value


def _put_back(cls: type, had: dict[str, Any]) -> None:
    for name in GUARD_ATTRIBUTES:
        if name in had:
            setattr(cls, name, had[name])
        elif name in cls.__dict__:
            delattr(cls, name)
