"""The publisher: what it sends when, what it makes of a broker's trouble, and what it says of each slot."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from amqp.exceptions import ChannelError
from celery import Celery
from celery.beat import SchedulingError
from kombu.exceptions import EncodeError, OperationalError

from celery_pgleader.beat import publisher as module
from celery_pgleader.beat.publisher import MOST_REFUSALS, Dispatch, Publisher
from celery_pgleader.store import Outcome
from tests.support.eventually import eventually

NOON = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
PATIENCE = 30.0


class Broker:
    """Stands for the broker: takes what is sent, unless a test has it do otherwise."""

    def __init__(self) -> None:
        """Be there."""
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.may = True
        self.now = NOON.timestamp()
        self.tried: list[Any] = []
        self.taken: list[Any] = []
        self.producers: list[Any] = []
        self.outcomes: list[Outcome] = []
        self.errors: dict[Any, list[Exception]] = {}
        self.away: Exception | None = None
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.publisher = Publisher(self.app, self.send, lambda: self.may, self.outcomes.append, lambda: self.now)

    def send(self, entry: Any, producer: Any) -> None:
        """Take an entry."""
        self.tried.append(entry)
        self.producers.append(producer)
        self.entered.set()
        self.gate.wait(PATIENCE)
        if self.away is not None:
            raise self.away
        left = self.errors.get(entry, [])
        if left:
            raise left.pop(0)
        self.taken.append(entry)

    def put(self, entry: str, minute: int = 0, *, newest_only: bool = True, grace: float = float("inf")) -> None:
        """Have a slot published; what is sent for it is the entry's name and the minute."""
        slot = NOON + minute * MINUTE
        older_are = "coalesced" if newest_only else None
        self.publisher.put(Dispatch(entry, slot, (entry, minute), slot.timestamp() + grace, older_are))

    def become_of(self, entry: str, minute: int = 0) -> list[tuple[str, str | None]]:
        """Return what was said of a slot."""
        slot = NOON + minute * MINUTE
        return [(o.state, o.reason) for o in list(self.outcomes) if (o.entry, o.slot) == (entry, slot)]

    def settled(self, count: int) -> None:
        """Wait until something was said of so many slots."""
        eventually(lambda: len(self.outcomes) >= count, timeout=PATIENCE)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """Give a broker, with a publisher that is yet to start and is in a hurry."""
    monkeypatch.setattr(module, "FIRST_RETRY", 0.0001)
    monkeypatch.setattr(module, "LONGEST_RETRY", 0.0004)
    broker = Broker()
    yield broker
    broker.gate.set()
    broker.publisher.stop(PATIENCE)


def wrapped(error: Exception) -> SchedulingError:
    """Return what Celery's scheduler makes of an error."""
    made = SchedulingError("Couldn't apply scheduled task")
    made.__context__ = error
    return made


def test_slots_are_published_in_order(broker: Broker) -> None:
    """With one connection; each is reported."""
    for minute, entry in enumerate("abcab"):
        broker.put(entry, minute, newest_only=False)
    broker.publisher.start()
    broker.publisher.start()
    broker.settled(5)
    assert broker.taken == [("a", 0), ("b", 1), ("c", 2), ("a", 3), ("b", 4)]
    assert [(o.entry, o.state, o.reason) for o in broker.outcomes] == [(e, "published", None) for e in "abcab"]
    assert len({id(producer) for producer in broker.producers}) == 1
    assert broker.producers[0].connection is not None


def test_newer_slot_replaces_an_older_one_that_waits(broker: Broker) -> None:
    """Entries with `all` keep each of their slots, and no entry touches another's."""
    for minute in (1, 2, 3):
        broker.put("newest", minute)
        broker.put("each", minute, newest_only=False)
    assert broker.become_of("newest", 1) == broker.become_of("newest", 2) == [("skipped", "coalesced")]
    broker.publisher.start()
    broker.settled(6)
    assert broker.taken == [("each", 1), ("each", 2), ("newest", 3), ("each", 3)]
    assert broker.become_of("newest", 3) == [("published", None)]
    assert len(broker.outcomes) == 6
    broker.put("newest", 4)
    broker.settled(7)
    assert broker.become_of("newest", 4) == [("published", None)]


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("no broker"),
        ConnectionRefusedError("no broker"),
        wrapped(OperationalError("no broker")),
        wrapped(TimeoutError("no broker")),
    ],
    ids=repr,
)
def test_publisher_tries_for_ever_while_the_broker_is_away(
    broker: Broker, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """With longer and longer pauses and a new connection each time; the order is kept."""
    broker.away = error
    broker.publisher.start()
    broker.put("a", 0)
    eventually(lambda: len(broker.tried) > 2 * MOST_REFUSALS, timeout=PATIENCE)
    broker.put("b", 0)
    before = len(broker.tried)
    eventually(lambda: len(broker.tried) > before + 3, timeout=PATIENCE)
    assert set(broker.tried) == {("a", 0)}
    assert not broker.outcomes
    broker.away = None
    broker.settled(2)
    assert broker.taken == [("a", 0), ("b", 0)]
    assert len({id(producer) for producer in broker.producers}) > 2
    pauses = [record.args[2] for record in caplog.records if record.levelno == logging.WARNING and record.args]  # type: ignore[index]
    assert pauses[:4] == [0.0001, 0.0002, 0.0004, 0.0004]
    assert "no broker" in caplog.records[0].getMessage()


def test_pauses_start_over_after_a_success(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.errors = {(e, 0): [OperationalError("away")] for e in "ab"}
    broker.publisher.start()
    broker.put("a")
    broker.settled(1)
    broker.put("b")
    broker.settled(2)
    assert [record.args[2] for record in caplog.records if record.args] == [0.0001, 0.0001]  # type: ignore[index]


def test_newer_slot_replaces_one_that_waits_for_the_broker(broker: Broker) -> None:
    """Whether it comes while the older one waits, or while that is being tried."""
    broker.away = OperationalError("away")
    broker.publisher.start()
    broker.put("a", 1)
    eventually(lambda: len(broker.tried) > 2, timeout=PATIENCE)
    broker.gate.clear()
    broker.entered.clear()
    assert broker.entered.wait(PATIENCE), "it is being tried"
    broker.put("a", 2)
    assert broker.become_of("a", 1) == [], "it may be sent yet"
    broker.gate.set()
    eventually(lambda: ("a", 2) in broker.tried, timeout=PATIENCE)
    broker.away = None
    broker.settled(2)
    assert broker.taken == [("a", 2)]
    assert broker.become_of("a", 1) == [("skipped", "coalesced")]
    assert broker.become_of("a", 2) == [("published", None)]


def test_slot_being_sent_is_not_replaced(broker: Broker) -> None:
    """Both are sent then."""
    broker.gate.clear()
    broker.publisher.start()
    broker.put("a", 1)
    assert broker.entered.wait(PATIENCE)
    broker.put("a", 2)
    broker.put("a", 3)
    broker.gate.set()
    broker.settled(3)
    assert broker.taken == [("a", 1), ("a", 3)]
    assert broker.become_of("a", 2) == [("skipped", "coalesced")]


def test_put_does_not_wait_for_a_broker_that_hangs(broker: Broker) -> None:
    broker.gate.clear()
    broker.publisher.start()
    broker.put("a")
    assert broker.entered.wait(PATIENCE)
    for minute in range(100):
        broker.put("b", minute)
        broker.put("c", minute, newest_only=False)
    assert not broker.taken, "the broker hangs still"
    broker.gate.set()
    broker.settled(201)
    assert broker.taken == [("a", 0), *(("c", minute) for minute in range(99)), ("b", 99), ("c", 99)]


def test_refused_slot_is_skipped_after_five_attempts(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """The others are sent after the first; the reason is written down."""
    broker.errors = {("a", 0): [wrapped(ChannelError("no such exchange"))] * 99}
    broker.put("a")
    broker.put("b")
    broker.publisher.start()
    broker.settled(2)
    assert broker.tried.count(("a", 0)) == MOST_REFUSALS
    assert broker.tried[:2] == [("a", 0), ("b", 0)]
    ((state, reason),) = broker.become_of("a")
    assert state == "skipped"
    assert reason is not None
    assert reason.startswith("cannot be sent: ChannelError: ")
    assert "no such exchange" in reason
    assert broker.become_of("b") == [("published", None)]
    assert "a of 2026-01-15 12:00:00+00:00 cannot be sent, and is skipped" in caplog.text


def test_slot_accepted_after_refusals_is_published(broker: Broker) -> None:
    """A refusal may pass, as while a queue is being declared."""
    broker.errors = {("a", 0): [ChannelError("no such queue")] * (MOST_REFUSALS - 1)}
    broker.put("a")
    broker.publisher.start()
    broker.settled(1)
    assert broker.become_of("a") == [("published", None)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (wrapped(EncodeError("cannot pickle\nthis")), "cannot be sent: EncodeError: cannot pickle"),
        (wrapped(KeyError("no such route")), "cannot be sent: KeyError: 'no such route'"),
        (TypeError("unexpected"), "cannot be sent: TypeError: unexpected"),
    ],
    ids=repr,
)
def test_slot_that_cannot_be_sent_is_skipped_at_once(broker: Broker, error: Exception, reason: str) -> None:
    """With a reason of one line; the others are sent."""
    broker.errors = {("a", 0): [error]}
    broker.put("a")
    broker.put("b")
    broker.publisher.start()
    broker.settled(2)
    assert broker.tried == [("a", 0), ("b", 0)]
    assert broker.become_of("a") == [("skipped", reason)]
    assert broker.become_of("b") == [("published", None)]


def test_each_attempt_connects_once(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher decides when to try again, not kombu."""
    calls: list[Any] = []

    class Unreachable:
        """A connection that cannot be had."""

        transport = broker.app.connection_for_write().transport
        connection_errors: tuple[type[Exception], ...] = ()
        channel_errors: tuple[type[Exception], ...] = ()

        def ensure_connection(self, **options: Any) -> None:
            calls.append(options)
            if len(calls) < 4:
                raise OperationalError("refused")

        def release(self) -> None:
            calls.append("released")
            raise OSError("not even that")

    class Amqp:
        """Has producers."""

        Producer = staticmethod(lambda *_args, **_options: "producer")

    monkeypatch.setattr(broker.app, "connection_for_write", Unreachable)
    monkeypatch.setattr(broker.app, "amqp", Amqp)
    broker.put("a")
    broker.publisher.start()
    broker.settled(1)
    once = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    assert calls[:5] == [once, "released", once, "released", once]
    assert broker.producers == ["producer"]


@pytest.mark.parametrize("transport", ["amqp", "redis"])
def test_amqp_broker_confirms_each_message(broker: Broker, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    """Otherwise a message that it never got would count as sent. Options that were set are kept."""
    made: list[Any] = []
    original = broker.app.connection_for_write

    def connection(*args: Any, **options: Any) -> Any:
        made.append(original(*args, **options))
        made[-1].transport_options = {"mine": 1}
        monkeypatch.setattr(type(made[-1].transport), "driver_type", transport)
        return made[-1]

    monkeypatch.setattr(broker.app, "connection_for_write", connection)
    broker.put("a")
    broker.publisher.start()
    broker.settled(1)
    expected = {"mine": 1, "confirm_publish": True} if transport == "amqp" else {"mine": 1}
    assert made[0].transport_options == expected


def test_late_slot_expires_when_its_turn_comes(broker: Broker) -> None:
    """Not when it was put; it may be sent up to the very instant."""
    broker.away = OperationalError("away")
    broker.publisher.start()
    broker.put("other", 0)
    broker.put("late", 0, grace=60)
    broker.put("just", 0, grace=61)
    broker.put("never", 0)
    eventually(lambda: broker.tried, timeout=PATIENCE)
    broker.now += 61
    broker.away = None
    broker.settled(4)
    assert broker.become_of("late") == [("expired", "misfire_grace")]
    assert broker.taken == [("other", 0), ("just", 0), ("never", 0)]


def test_stop_does_not_wait_for_a_broker_that_hangs(broker: Broker) -> None:
    """What waits is left to the next leader: nothing is reported of it."""
    broker.gate.clear()
    broker.publisher.start()
    broker.put("a")
    broker.put("b")
    assert broker.entered.wait(PATIENCE)
    broker.publisher.stop(0.01)
    assert not broker.taken, "the broker hangs still"
    broker.gate.set()
    broker.settled(1)
    eventually(lambda: "pgleader-publisher" not in {thread.name for thread in threading.enumerate()}, timeout=PATIENCE)
    assert broker.taken == [("a", 0)]
    assert broker.become_of("b") == []


@pytest.mark.parametrize("busy", ["idle", "resting"])
def test_stop_does_not_wait_for_a_pause_to_end(broker: Broker, monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
    monkeypatch.setattr(module, "LONGEST_RETRY", 3600.0)
    broker.publisher._pause = 3600.0  # noqa: SLF001 - it would take an hour of failures
    broker.away = OperationalError("away")
    broker.publisher.start()
    if busy == "resting":
        broker.put("a")
        assert broker.entered.wait(PATIENCE)
    broker.publisher.stop(PATIENCE)
    assert "pgleader-publisher" not in {thread.name for thread in threading.enumerate()}
    broker.publisher.stop(0)
    assert not broker.outcomes


def test_nothing_is_sent_after_the_term(broker: Broker) -> None:
    """What waits is left to the next leader."""
    broker.gate.clear()
    broker.publisher.start()
    broker.put("a")
    broker.put("b")
    assert broker.entered.wait(PATIENCE)
    broker.may = False
    broker.gate.set()
    eventually(lambda: "pgleader-publisher" not in {thread.name for thread in threading.enumerate()}, timeout=PATIENCE)
    assert broker.taken == [("a", 0)]
    assert broker.become_of("b") == []


def test_publisher_connects_only_to_send(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader with nothing to send needs no broker; one that has ended leaves no connection behind."""
    released: list[Any] = []
    original: Callable[..., Any] = broker.app.connection_for_write

    def connection() -> Any:
        made = original()
        monkeypatch.setattr(made, "release", lambda: released.append(made))
        return made

    monkeypatch.setattr(broker.app, "connection_for_write", connection)
    broker.publisher.start()
    broker.put("late", 0, grace=-1)
    broker.settled(1)
    assert not broker.producers
    broker.put("a")
    broker.settled(2)
    assert not released
    broker.publisher.stop(PATIENCE)
    assert len(released) == 1
