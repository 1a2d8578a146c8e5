"""Schedulers bound to a term, and what stands in for the database, the broker's pace and the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from celery.beat import Scheduler

from celery_pgleader.beat.publisher import Dispatch, Publisher
from celery_pgleader.beat.scheduler import bind
from celery_pgleader.beat.slot_keeper import SlotKeeper
from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.store import Outcome
from tests.support.memory import MemoryLedger

CONFIG = Config(database_url="postgresql://nowhere")
TERM = Term(1, "celery", "a", 1)


class PromptPublisher(Publisher):
    """Publishes in another thread, as ever, but has done so when `put` returns."""

    def put(self, dispatch: Dispatch) -> None:
        """Publish a slot."""
        super().put(dispatch)
        thread = threading.Thread(target=self._publish_next)
        thread.start()
        thread.join()

    def _publish_next(self) -> None:
        dispatch = self._take()
        assert dispatch is not None
        self._publish(dispatch)
        self._disconnect()


class Clock:
    """The time that it is for the schedulers of a test, whose schedules may have a clock of their own.

    It stands still during a tick, so that what a tick returns does not depend on how long it takes.
    """

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.schedulers: list[Any] = []
        self._still: datetime | None = None

    def now(self) -> datetime:
        """Return the time, in UTC."""
        if self._still is not None:
            return self._still
        for scheduler in self.schedulers:
            for entry in scheduler.schedule.values():
                if getattr(entry.schedule, "nowfun", None) is not None:
                    return _aware(entry.schedule.now())
        return _aware(self.schedulers[0].app.now()) if self.schedulers else datetime.now(timezone.utc)

    def time(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self.now().timestamp()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Stand still."""
        self._still = self.now()
        try:
            yield
        finally:
            self._still = None


class Still:
    """What a scheduler's class gets in front of its own methods for the clock to stand still."""

    clock: Clock

    def tick(self) -> Any:
        with self.clock.still():
            return super().tick()  # type: ignore[misc]  # the scheduler's


def make_bound(scheduler_class: type[Scheduler], app: Any, clock: Clock) -> Any:
    """Return an instance of the class that stands for another in a term; its `__init__` is yet to be called."""

    def send(entry: Any, producer: Any) -> None:
        made.send(entry, producer)

    def settled(outcome: Outcome) -> None:
        keeper.settle([outcome])

    publisher = PromptPublisher(app, send, _may_act, settled, clock.time)
    keeper = SlotKeeper(CONFIG, TERM, MemoryLedger(), publisher, clock.now)
    bound = bind(scheduler_class, keeper, _may_act)
    made: Any = object.__new__(type(bound.__name__, (Still, bound), {"clock": clock}))
    clock.schedulers.append(made)
    return made


def _may_act() -> bool:
    return True


def _aware(moment: datetime) -> datetime:
    # As in Celery, one without a time zone is in UTC.
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
