"""Dispatches durable notifications while this node leads."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol
from uuid import uuid5

import psycopg
from celery.utils.log import get_logger

from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.errors import NotificationError
from celery_pgleader.notifications.courier import BrokerAway, Courier, NotTaken, Refused
from celery_pgleader.notifications.dispatcher import send
from celery_pgleader.slot import NOTIFICATION_HEADER
from celery_pgleader.spans import carry, span
from celery_pgleader.store import Letter, Mailbox, Superseded
from celery_pgleader.threads import Doorbell, Ending

logger = get_logger(__name__)

# How often it is looked for notifications that came without a wake-up; and for those of senders that were on the way
# when the relay lay down, as long as there are such.
POLL = 5.0
FIRST_NAP, LONGEST_NAP = 0.01, 0.25
MOST_ATTEMPTS = 5
FIRST_REST, LONGEST_REST = 0.2, 10.0
# For one that the broker has no room for; that is not the notification's fault, and not counted as an attempt.
REFUSED_REST = 2.0
# When so many are refused in a row, no more are tried.
MOST_REFUSED = 3
# How many lone ones are let past a backlog in one go.
PAST = 100


class Relay:
    """Takes durable notifications from the mailbox to the broker, in order within a key.

    Each is dispatched at least once: it leaves the mailbox after the broker has got its messages. Their task ids are
    made from it, so that a second dispatch has the same ones.
    """

    def __init__(
        self,
        app: Any,
        config: Config,
        leadership: Leadership,
        channels: Mapping[str, tuple[Route, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            app: the Celery app that sends.
            config: where the mailbox is.
            leadership: asked before each batch.
            channels: routes by channel; notifications of other channels stay where they are.
            clock: monotonic seconds.

        """
        self._app = app
        self._config = config
        self._leadership = leadership
        self._channels = channels
        self._clock = clock

    def run(self, term: Term, ended: Ending) -> None:
        """Dispatch until the term ends, or until a session fails."""

        def may_act() -> bool:
            return not ended.is_set() and self._leadership.trusted(term)

        courier = Courier(self._app)
        try:
            with (
                closing(Doorbell()) as bell,
                closing(Mailbox(self._config, term, self._channels, may_act)) as mailbox,
            ):
                ended.ring(bell)
                Round(self._app, self._channels, term, mailbox, courier, self._leadership, may_act, self._clock).go_on(
                    ended, bell
                )
        except Superseded:
            pass
        except psycopg.Error as error:
            if not ended.is_set():
                logger.warning("pgleader: the relay lost its session: %s", str(error).strip().splitlines()[0])
        finally:
            courier.close()


class MailboxPort(Protocol):
    """What the relay needs of a mailbox; see `store.Mailbox`, which is one."""

    def waiting(
        self, *, after: int = ..., alone: bool = ..., resting: Collection[Letter], limit: int = ...
    ) -> tuple[list[Letter], bool]:
        """Return a batch of what waits, and whether there was no room for more."""

    def is_any_waiting(self, *, resting: Collection[Letter]) -> bool:
        """Tell whether `waiting` would return anything."""

    def newest(self) -> int:
        """Return the highest id of those that wait."""

    def dispatched(self, letters: Iterable[Letter], /) -> None:
        """Write down that notifications were dispatched."""

    def tried(self, letter: Letter, error: str, /) -> None:
        """Write down that an attempt has failed."""

    def bury(self, letter: Letter, error: str, /) -> None:
        """Make a notification a dead letter."""

    def lie_down(self, *, lightly: bool) -> bool:
        """Ask for wake-ups; tell whether all that is not seen yet will have one."""

    def get_up(self) -> None:
        """Ask for wake-ups no more."""

    def wait(self, seconds: float, bell: Doorbell, /) -> bool:
        """Wait for a wake-up, or for the bell; tell whether there was a wake-up."""


class CourierPort(Protocol):
    """What the relay needs of a courier; see `Courier`."""

    may_take_some: bool

    def batch(self) -> AbstractContextManager[Any]:
        """Give a producer; at the end, see that the broker has got what was published with it."""

    def reachable(self) -> bool:
        """Tell whether the broker can be connected to."""

    def is_of_connection(self, error: BaseException, /) -> bool:
        """Tell whether an error says something of the connection."""


class Round:
    """The relay of one term, with one session."""

    def __init__(
        self,
        app: Any,
        channels: Mapping[str, tuple[Route, ...]],
        term: Term,
        mailbox: MailboxPort,
        courier: CourierPort,
        leadership: Leadership,
        may_act: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        """Prepare; see `Relay`."""
        self._app = app
        self._channels = channels
        self._term = term
        self._mailbox = mailbox
        self._courier = courier
        self._leadership = leadership
        self._may_act = may_act
        self._clock = clock
        # Those whose dispatch has failed, and until when they rest; so does all that has the same key.
        self._resting: dict[int, tuple[Letter, float]] = {}
        # How many it has dispatched; and the id above which nothing was looked at yet.
        self._dispatched = 0
        self._seen = 0
        self._pause = FIRST_REST
        self._nap = FIRST_NAP
        self._lay_down = -math.inf
        self._has_found = False
        # Whether senders see that it sleeps; and whether all of them do whose notifications were not looked at yet.
        self._asleep = False
        self._all_wake = False

    def go_on(self, ended: threading.Event, bell: Doorbell) -> None:
        """Dispatch what waits and what comes, until the term has ended, of which the bell tells."""
        self._seen = self._mailbox.newest()
        while not ended.is_set():
            try:
                more = self.turn()
            except NotTaken as away:
                self._get_up()
                logger.warning("pgleader: notifications wait for the broker, %g s: %s", self._pause, away)
                ended.wait(self._pause)
                self._pause = min(LONGEST_REST, self._pause * 2)
                continue
            self._pause = FIRST_REST
            if more:
                self._get_up()
            else:
                self._sleep(ended, bell)

    def turn(self) -> bool:
        """Dispatch a batch; tell whether to look again at once, since something was left behind."""
        now = self._clock()
        self._has_found = False
        self._resting = {id_: rest for id_, rest in self._resting.items() if rest[1] > now}
        with self._leadership.acting():
            if not self._may_act():
                return False
            resting = [letter for letter, _ in self._resting.values()]
            oldest, more = self._mailbox.waiting(resting=resting)
            if not oldest:
                return False
            self._has_found = True
            self._nap = FIRST_NAP
            before = self._dispatched
            self._dispatch(oldest)
            more = more or self._dispatched < before + len(oldest)
            self._seen = max(self._seen, oldest[-1].id)
            # Whoever has nothing to do with a backlog need not wait for its end.
            if self._seen > oldest[-1].id and (newest := self._mailbox.newest()) > self._seen:
                past, too_many = self._mailbox.waiting(after=self._seen, alone=True, resting=resting, limit=PAST)
                self._dispatch(past)
                self._seen = past[-1].id if too_many else newest
        return more

    def _dispatch(self, letters: Sequence[Letter]) -> None:
        # Of what is under way together a broker may take the later and not the earlier.
        for part in _one_of_each_key(letters) if self._courier.may_take_some else [letters]:
            resting = {(letter.channel, letter.key) for letter, _ in self._resting.values() if letter.key is not None}
            awake = [letter for letter in part if (letter.channel, letter.key) not in resting]
            if awake:
                self._dispatch_together(awake)

    def _dispatch_together(self, letters: Sequence[Letter]) -> None:
        try:
            done, failed = self._send_all(letters)
        except NotTaken as error:
            if isinstance(error, BrokerAway) or not self._courier.reachable():
                raise
            # A connection that had gone stale, or one of them is what it will not take; which one is found by sending
            # them one by one.
            self._dispatch_singly(letters)
            return
        if done:
            self._let_go(done)
        for letter, reason in failed:
            self._fail(letter, reason)

    def _dispatch_singly(self, letters: Sequence[Letter]) -> None:
        held: set[tuple[str, str]] = set()
        refused = 0
        for letter in letters:
            if letter.key is not None and (letter.channel, letter.key) in held:
                continue
            try:
                done, failed = self._send_all([letter])
            except NotTaken as error:
                if isinstance(error, BrokerAway) or not self._courier.reachable():
                    raise
                done, failed = [], [(letter, str(error))]
                if isinstance(error, Refused):
                    refused += 1
                    if refused >= MOST_REFUSED:
                        raise
                    self._resting[letter.id] = letter, self._clock() + REFUSED_REST
                    failed = []
            if done:
                refused = 0
                self._let_go(done)
            else:
                held.update([(letter.channel, letter.key)] if letter.key is not None else [])
            for bad, reason in failed:
                self._fail(bad, reason)

    def _send_all(self, letters: Sequence[Letter]) -> tuple[list[Letter], list[tuple[Letter, str]]]:
        """Publish the messages of notifications; return those that the broker has got, and what failed, with why."""
        done: list[Letter] = []
        failed: list[tuple[Letter, str]] = []
        held: set[tuple[str, str]] = set()
        with self._courier.batch() as producer:
            for letter in letters:
                if letter.key is not None and (letter.channel, letter.key) in held:
                    continue
                if not self._may_act():
                    break
                try:
                    self._send(letter, producer)
                except Exception as error:
                    if self._courier.is_of_connection(error):
                        raise
                    failed.append((letter, f"{type(error).__name__}: {error}".splitlines()[0]))
                    if letter.key is not None:
                        held.add((letter.channel, letter.key))
                else:
                    done.append(letter)
        return done, failed

    def _send(self, letter: Letter, producer: Any) -> None:
        routes = self._channels[letter.channel]
        for route in routes:
            if route.task not in self._app.tasks and route.queue is None:
                raise LookupError(f"no task {route.task} in this app")
        value = value_of(letter.payload)
        attributes = {"channel": letter.channel, "notification": letter.id, "term": self._term.number}
        with span("dispatch", attributes, sends=True):
            self._send_routes(letter, routes, value, producer)

    def _send_routes(self, letter: Letter, routes: Sequence[Route], value: Any, producer: Any) -> None:
        for route in routes:
            headers = headers_of(letter, route, self._term.number)
            carry(headers)
            send(
                self._app,
                route,
                value if route.decode == "json" else letter.payload,
                producer=producer,
                # What is tried again, and when, is decided here.
                retry=False,
                task_id=task_id_of(letter, route),
                headers=headers,
            )

    def _let_go(self, letters: Sequence[Letter]) -> None:
        self._mailbox.dispatched(letters)
        self._dispatched += len(letters)

    def _fail(self, letter: Letter, error: str) -> None:
        if letter.attempts + 1 >= MOST_ATTEMPTS:
            logger.error("pgleader: notification %d on %s is a dead letter: %s", letter.id, letter.channel, error)
            self._mailbox.bury(letter, error)
            return
        logger.warning("pgleader: could not dispatch notification %d on %s: %s", letter.id, letter.channel, error)
        self._mailbox.tried(letter, error)
        self._resting[letter.id] = letter, self._clock() + FIRST_REST * 2**letter.attempts

    def _sleep(self, ended: threading.Event, bell: Doorbell) -> None:
        """Wait for a wake-up, the end of a rest, or the next look."""
        now = self._clock()
        # Where senders follow one another closely, it is cheaper for all to look than to be woken.
        if (self._has_found and not self._all_wake) or now < self._lay_down + FIRST_NAP:
            self._get_up()
            ended.wait(FIRST_NAP)
            return
        self._lay_down = now
        until = min([now + POLL, *(rest_until for _, rest_until in self._resting.values())])
        if not self._all_wake:
            self._get_up()
            self._asleep = True
            self._all_wake = self._mailbox.lie_down(lightly=self._nap > FIRST_NAP)
            if not self._all_wake:
                until = min(until, now + self._nap)
                self._nap = min(LONGEST_NAP, self._nap * 2)
            # What was committed before, and by somebody who saw nobody sleep, can be seen from here on.
            resting = [letter for letter, _ in self._resting.values()]
            if self._may_act() and self._mailbox.is_any_waiting(resting=resting):
                return
        while not ended.is_set() and (left := until - self._clock()) > 0:
            if self._mailbox.wait(left, bell):
                self._nap = FIRST_NAP
                break

    def _get_up(self) -> None:
        if self._asleep:
            self._mailbox.get_up()
            self._asleep = self._all_wake = False


def _one_of_each_key(letters: Sequence[Letter]) -> list[list[Letter]]:
    """Part notifications so that no part has two with the same key, and with one key the order is that of the parts."""
    parts: list[list[Letter]] = []
    found: Counter[tuple[str, str]] = Counter()
    for letter in letters:
        number = 0
        if letter.key is not None:
            number = found[letter.channel, letter.key]
            found[letter.channel, letter.key] += 1
        if number == len(parts):
            parts.append([])
        parts[number].append(letter)
    return parts


def task_id_of(letter: Letter, route: Route) -> str:
    """Return the task id of a notification's message: the same one, however often it is dispatched."""
    return str(uuid5(letter.uid, route.task))


def headers_of(letter: Letter, route: Route, term: int) -> dict[str, Any]:
    """Return what a notification's message says of it."""
    header = {"id": letter.id, "channel": letter.channel, "key": letter.key, "deduplicate": route.deduplicate}
    return {"pgleader_channel": letter.channel, "pgleader_term": term, NOTIFICATION_HEADER: header}


def value_of(payload: str) -> Any:
    """Return the value of a durable payload.

    Raises:
        NotificationError: Postgres can hold it, but Python cannot.

    """
    try:
        return json.loads(payload, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotificationError(f"the payload cannot be read: {error}") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number
