"""Binds any `celery.beat.Scheduler` to a term: what it finds due is claimed in the ledger before it is sent."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery.beat import PersistentScheduler, Scheduler
from celery.utils.log import get_logger

from celery_pgleader.beat.schedule_file import FileForMoments
from celery_pgleader.beat.slot_keeper import Claim, SlotKeeper, TermOver

logger = get_logger(__name__)

# Entries that are due together are claimed together, so many at once at most.
BATCH = 200
CLOCK_STEP = 0.1
REFUSED_PAUSE = 1.0


class TermBound:
    """What a scheduler's class gets in front of its own methods; see `bind`.

    `reserve` and `apply_async` are the two methods that every known scheduler passes through for each entry.
    """

    # What is claimed is sent by the publisher, with a connection of its own.
    producer = None

    # Stand for what the scheduler's class brings.
    Entry: Any
    Model: Any
    app: Any
    max_interval: float

    keeper: SlotKeeper
    may_act: Callable[[], bool]
    holds: Callable[[], bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set up the schedule, as the scheduler does."""
        self._thread = threading.get_ident()
        self._claims: dict[str, list[Claim]] = {}
        super().__init__(*args, **kwargs)

    def reserve(self, entry: Any) -> Any:
        """Claim an entry's slots, and take note that it is being sent."""
        claims = self._claim(entry)
        self._claims[entry.name] = claims
        return self._reserved(entry, claims)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **_: Any) -> Any:  # noqa: FBT001, FBT002 - as in the base class
        """Have the slots of an entry that were claimed published; in the publisher's thread, send it."""
        if threading.get_ident() != self._thread:
            return self._send(entry, producer)
        if advance:
            self.reserve(entry)
        elif entry.name not in self._claims:
            # Sent by a scheduler that has not reserved it first, and has its reasons.
            self._claims[entry.name] = self._claim(entry, whatever_is_due=True)
        for claim in self._claims.pop(entry.name):
            self.keeper.publish(entry, claim)
        return None

    def send(self, entry: Any, producer: Any) -> None:
        """Send one entry, as the scheduler does; called in the publisher's thread."""
        logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        self._send(entry, producer)

    def find(self, name: str) -> Any:
        """Return an entry by its name, or none."""
        entry = self.schedule.get(name)  # type: ignore[attr-defined]  # the scheduler's
        if entry is None and hasattr(self.Entry, "from_key"):
            # RedBeat's `schedule` holds what is due only.
            try:
                entry = self.Entry.from_key(self.Entry.generate_key(self.app, name), app=self.app)
            except KeyError:
                return None
        if entry is None and name in self._hidden():
            entry = self.Entry(self.Model.objects.get(name=name), app=self.app)
        return entry

    def should_sync(self) -> bool:
        """Tell whether the schedule's state is to be written; never while the publisher sends."""
        return threading.get_ident() == self._thread and bool(super().should_sync())  # type: ignore[misc]  # the scheduler's

    def sync(self) -> None:
        """Write the schedule's state, unless that may be the next leader's by now. To fail at it costs no term."""
        if self.holds():
            try:
                super().sync()  # type: ignore[misc]  # the scheduler's
            except Exception:
                logger.exception("pgleader: the scheduler could not write down its state, and goes on")

    def close(self) -> None:
        """End; what is to be kept was written by `sync`."""
        try:
            super().close()  # type: ignore[misc]  # the scheduler's
        except Exception:
            logger.exception("pgleader: the scheduler could not be closed")
        finally:
            # The schedulers with a database ask to be synced when the process ends, and would live until then.
            finalize = getattr(self, "_finalize", None)
            if finalize is not None:
                finalize.cancel()

    def forget(self) -> None:
        """Take nothing for granted that was known of the entries."""

    def _hidden(self) -> Iterable[str]:
        """Return the names of entries that are in the schedule, but that it does not show at this hour."""
        # django-celery-beat leaves out crontabs that are not due within two hours.
        if hasattr(self, "enabled_models_qs"):
            names: Iterable[str] = self.Model.objects.enabled().values_list("name", flat=True)
            return names
        return ()

    def _claim(self, entry: Any, *, whatever_is_due: bool = False) -> list[Claim]:
        self._check()
        self.keeper.meet({entry.name: entry})
        return self.keeper.claim([entry], whatever_is_due=whatever_is_due).get(entry.name, [])

    def _send(self, entry: Any, producer: Any) -> Any:
        return super().apply_async(entry, producer=producer, advance=False)  # type: ignore[misc]  # the scheduler's

    def _reserved(self, entry: Any, claims: list[Claim]) -> Any:
        # What is not sent was not run either.
        reserved = super().reserve(entry) if claims else entry  # type: ignore[misc]  # the scheduler's
        self.keeper.remind(reserved)
        if hasattr(reserved, "reschedule"):
            # RedBeat looks an entry up by when it is due, which it has just counted from now.
            reserved.reschedule(reserved.last_run_at)
        return reserved

    def _check(self) -> None:
        if not self.may_act():
            raise TermOver


class Ticking(TermBound):
    """The tick of schedulers that do not bring one of their own.

    Celery's compares the whole schedule with what it was before, for each entry that it sends, and sends one at a time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set up the schedule, as the scheduler does."""
        self._met: dict[str, Any] = {}
        self._heap: list[tuple[float, str]] = []
        self._offset = 0.0
        super().__init__(*args, **kwargs)
        # Celery's own heap has another shape.
        self._heap = []

    def tick(self, *_: Any, **__: Any) -> float:
        """Claim what is due and have it published; return in how many seconds the next entry will be."""
        self._check()
        schedule = self.schedule  # type: ignore[attr-defined]  # the scheduler's
        offset = time.time() - time.monotonic()
        if not self._is_as_met(schedule) or abs(offset - self._offset) > CLOCK_STEP:
            self._offset = offset
            self._meet(schedule)
        due = self._due(schedule)
        if due:
            # If this comes to no end, nothing is known of these entries.
            self._met = {}
            claims = self.keeper.claim(due)
            for entry in due:
                self._check()
                self._go_on(entry, claims.get(entry.name))
            self._met = dict(schedule)
        left = self._heap[0][0] - time.time() if self._heap else self.max_interval
        return max(0.0, min(left, self.max_interval))

    def send(self, entry: Any, producer: Any) -> None:
        """Send one entry, by way of `apply_entry`, which others hook into."""
        self._failure: Exception | None = None
        self.apply_entry(entry, producer=producer)  # type: ignore[attr-defined]  # the scheduler's
        # It was logged there, and not passed on.
        if self._failure is not None:
            raise self._failure

    def _send(self, entry: Any, producer: Any) -> Any:
        try:
            return super()._send(entry, producer)
        except Exception as error:
            self._failure = error
            raise

    def forget(self) -> None:
        """Look at all entries anew in the next tick."""
        self._met = {}

    def _is_as_met(self, schedule: Mapping[str, Any]) -> bool:
        met = self._met
        return bool(met) and len(met) == len(schedule) and all(met.get(name) is e for name, e in schedule.items())

    def _meet(self, schedule: Mapping[str, Any]) -> None:
        self.keeper.meet(schedule, names={*schedule, *self._hidden()})
        self._heap = []
        for entry in list(schedule.values()):
            self._plan(entry)
        self._met = dict(schedule)

    def _due(self, schedule: Mapping[str, Any]) -> list[Any]:
        due: list[Any] = []
        while self._heap and len(due) < BATCH and self._heap[0][0] <= time.time():
            entry = schedule.get(heapq.heappop(self._heap)[1])
            if entry is None:
                continue
            is_due, seconds = self._ask(entry)
            if is_due:
                due.append(entry)
            else:
                self._push(entry, seconds)
        return due

    def _go_on(self, entry: Any, claims: list[Claim] | None) -> None:
        if claims is None:
            self.keeper.remind(entry)
            self._push(entry, REFUSED_PAUSE)
            return
        reserved = self._reserved(entry, claims)
        for claim in claims:
            self.keeper.publish(entry, claim)
        self._plan(reserved)

    def _plan(self, entry: Any) -> None:
        is_due, seconds = self._ask(entry)
        self._push(entry, 0.0 if is_due else seconds)

    def _ask(self, entry: Any) -> tuple[bool, float]:
        try:
            is_due, seconds = self.is_due(entry)  # type: ignore[attr-defined]  # the scheduler's
        except Exception:
            # One entry whose next run cannot be calculated must not stop the others.
            logger.exception("pgleader: cannot calculate the next run of %s", entry.name)
            return False, self.max_interval
        return is_due, seconds if isinstance(seconds, int | float) else self.max_interval

    def _push(self, entry: Any, seconds: float) -> None:
        heapq.heappush(self._heap, (time.time() + seconds, entry.name))


def bind(
    scheduler_class: type[Scheduler],
    keeper: SlotKeeper,
    may_act: Callable[[], bool],
    holds: Callable[[], bool] | None = None,
) -> type[Scheduler]:
    """Return a subclass whose instances claim what they send, and raise `TermOver` in place of what they may not do.

    Args:
        scheduler_class: the app's own.
        keeper: claims, and has it published.
        may_act: whether the term is still trusted.
        holds: whether the scheduler may still write its state, as it does last of all; by default `may_act`.

    """
    fronts: list[type] = [Ticking if scheduler_class.tick is Scheduler.tick else TermBound]
    if issubclass(scheduler_class, PersistentScheduler):
        fronts.append(FileForMoments)
    attributes = {"keeper": keeper, "may_act": staticmethod(may_act), "holds": staticmethod(holds or may_act)}
    return type(f"Term{scheduler_class.__name__}", (*fronts, scheduler_class), attributes)
