"""Sends what was claimed to the broker, in a thread of its own: a broker that hangs holds up no claim, and no stop."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celery_pgleader.spans import span
from celery_pgleader.store import Outcome

logger = get_logger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.5, 10.0
MOST_REFUSALS = 5


@dataclass
class Dispatch:
    """A claimed slot that is to be published.

    Attributes:
        name: name of the entry.
        slot: the slot.
        entry: the entry as it is sent, with the slot's task id and header.
        expires_at: seconds since the epoch after which it is too late.
        older_are: what an older slot of the same entry that still waits is skipped as; none if it is published, too.
        refusals: how often the broker was there and would not take it.
        cause: the span in which it was claimed, if there was one.

    """

    name: str
    slot: datetime
    entry: Any
    expires_at: float
    older_are: str | None
    refusals: int = 0
    cause: Any = None

    @property
    def key(self) -> tuple[str, datetime]:
        """What it is known by."""
        return self.name, self.slot


class Publisher:
    """Publishes slots in the order in which they were claimed."""

    def __init__(
        self,
        app: Any,
        send: Callable[[Any, Any], object],
        may_act: Callable[[], bool],
        settled: Callable[[Outcome], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            app: whose broker it is.
            send: sends an entry with a producer.
            may_act: asked before each is sent; once it says no, nothing is sent any more.
            settled: told what became of each. Called in the publisher's thread, or in that of `put`.
            clock: seconds since the epoch.

        """
        self._app = app
        self._send = send
        self._may_act = may_act
        self._settled = settled
        self._clock = clock
        self._turn = threading.Condition()
        self._waiting: OrderedDict[tuple[str, datetime], Dispatch] = OrderedDict()
        self._newest: dict[str, tuple[str, datetime]] = {}
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._connection: Any = None
        self._producer: Any = None
        self._pause = FIRST_RETRY

    def start(self) -> None:
        """Begin to publish."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pgleader-publisher", daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Publish no more, and wait at most `timeout` seconds for the message under way.

        What was not published stays claimed, for the next leader to publish.
        """
        thread, self._thread = self._thread, None
        with self._turn:
            self._stopping = True
            self._turn.notify_all()
        if thread is not None:
            thread.join(timeout)

    def put(self, dispatch: Dispatch) -> None:
        """Have a slot published."""
        with self._turn:
            older = self._waiting.pop(self._newest.get(dispatch.name, dispatch.key), None)
            self._waiting[dispatch.key] = dispatch
            if dispatch.older_are is not None:
                self._newest[dispatch.name] = dispatch.key
            self._turn.notify_all()
        if older is not None:
            self._settled(Outcome(older.name, older.slot, "skipped", older.older_are))

    def _run(self) -> None:
        try:
            while (dispatch := self._take()) is not None:
                self._publish(dispatch)
        finally:
            self._disconnect()

    def _take(self) -> Dispatch | None:
        with self._turn:
            self._turn.wait_for(lambda: self._stopping or self._waiting)
            if self._stopping or not self._may_act():
                return None
            _, dispatch = self._waiting.popitem(last=False)
            if self._newest.get(dispatch.name) == dispatch.key:
                del self._newest[dispatch.name]
            return dispatch

    def _publish(self, dispatch: Dispatch) -> None:
        if self._clock() > dispatch.expires_at:
            self._settled(Outcome(dispatch.name, dispatch.slot, "expired", "misfire_grace"))
            return
        try:
            if self._producer is None:
                self._connect()
            attributes = {"entry": dispatch.name, "slot": dispatch.slot.isoformat()}
            with span("publish", attributes, sends=True, cause=dispatch.cause):
                self._send(dispatch.entry, self._producer)
        except Exception as error:  # noqa: BLE001 - an entry may fail in any way
            self._failed(dispatch, error)
        else:
            self._pause = FIRST_RETRY
            self._settled(Outcome(dispatch.name, dispatch.slot, "published"))

    def _failed(self, dispatch: Dispatch, error: Exception) -> None:
        # celery.beat wraps what went wrong.
        cause = error.__context__ or error
        away, refused = _broker_errors(self._connection)
        self._disconnect()
        dispatch.refusals += isinstance(cause, refused)
        if isinstance(cause, away) or (isinstance(cause, refused) and dispatch.refusals < MOST_REFUSALS):
            logger.warning(
                "pgleader: could not publish %s of %s, trying again in %g s: %r",
                dispatch.name,
                dispatch.slot.isoformat(),
                self._pause,
                cause,
            )
            self._put_back(dispatch, first=isinstance(cause, away))
            self._rest()
        else:
            logger.error(
                "pgleader: %s of %s cannot be sent, and is skipped", dispatch.name, dispatch.slot, exc_info=error
            )
            reason = f"cannot be sent: {type(cause).__name__}: {cause}".splitlines()[0]
            self._settled(Outcome(dispatch.name, dispatch.slot, "skipped", reason))

    def _put_back(self, dispatch: Dispatch, *, first: bool) -> None:
        with self._turn:
            if dispatch.older_are is not None and dispatch.name in self._newest:
                superseded = True
            else:
                superseded = False
                self._waiting[dispatch.key] = dispatch
                self._waiting.move_to_end(dispatch.key, last=not first)
                if dispatch.older_are is not None:
                    self._newest[dispatch.name] = dispatch.key
        if superseded:
            self._settled(Outcome(dispatch.name, dispatch.slot, "skipped", dispatch.older_are))

    def _rest(self) -> None:
        pause, self._pause = self._pause, min(LONGEST_RETRY, self._pause * 2)
        with self._turn:
            self._turn.wait_for(lambda: self._stopping, pause)

    def _connect(self) -> None:
        connection = self._connection = self._app.connection_for_write()
        if connection.transport.driver_type == "amqp":
            # Without, a message that the broker never got counts as sent.
            connection.transport_options = {**connection.transport_options, "confirm_publish": True}
        # One attempt: when to try again is decided here.
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        self._producer = self._app.amqp.Producer(connection, auto_declare=False)

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception:
                logger.debug("pgleader: could not release a broken connection", exc_info=True)


def _broker_errors(connection: Any) -> tuple[tuple[type[BaseException], ...], tuple[type[BaseException], ...]]:
    """Return what says that the broker is away, and what that it would not take a message."""
    if connection is None:
        return (OperationalError, OSError), ()
    return (OperationalError, OSError, *connection.connection_errors), tuple(connection.channel_errors)
