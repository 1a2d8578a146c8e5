"""Drives the app's beat scheduler during a term."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.beat import Scheduler
from celery.utils.imports import load_extension_class_names, symbol_by_name
from celery.utils.log import get_logger

from celery_pgleader.beat.publisher import Publisher
from celery_pgleader.beat.scheduler import bind
from celery_pgleader.beat.slot_keeper import LedgerAway, LedgerPort, SlotKeeper, TermOver
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.errors import refused
from celery_pgleader.spans import carry
from celery_pgleader.store import Ledger, Outcome
from celery_pgleader.threads import Ending

logger = get_logger(__name__)

# A change of the schedule, or of the clock, is seen within this time.
LONGEST_WAIT = 5.0
LEDGER_RETRY = 0.5
PUBLISHER_PATIENCE = 0.1
RECOVER_EVERY, PRUNE_EVERY = 10.0, 60.0
# Chores are put off while an entry is due sooner than this.
CHORE_TIME = 0.05
# A beat that has not moved for so long hangs.
PATIENCE = 30.0
TOLERATED_SKEW = 1.0


class LeaderBeat:
    """Runs the app's beat scheduler, a new instance for each term.

    `celery.beat.Service` is left out on purpose: it sleeps for up to `beat_max_loop_interval` and cannot be woken.
    """

    def __init__(
        self,
        app: Any,
        scheduler: Any,
        schedule_filename: str,
        config: Config,
        leadership: Leadership,
        *,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            app: the Celery app.
            scheduler: `beat_scheduler`: a class, its dotted name, or an alias that a package has registered.
            schedule_filename: where a scheduler that keeps a file keeps it.
            config: the policies, and where the ledger is.
            leadership: asked before each entry is dispatched.
            patience: seconds without a move after which the beat hangs.
            clock: monotonic seconds.

        """
        self._scheduler_class = scheduler_class(scheduler)
        self._app = app
        self._schedule_filename = schedule_filename
        self._config = config
        self._leadership = leadership
        self._patience = patience
        self._clock = clock
        self._moved_at = (0, 0.0)
        self._look_asked = threading.Event()
        self._bell: threading.Event | None = None

    def look(self) -> None:
        """Have the beat of the present term look at once for slots that somebody else has claimed."""
        self._look_asked.set()
        bell = self._bell
        if bell is not None:
            bell.set()

    def trouble(self, term: Term) -> str | None:
        """Return why this node should not lead the term any longer, or nothing. Asked at each renewal."""
        number, moved_at = self._moved_at
        if number != term.number:
            # It has yet to begin, as it cannot while an earlier term's hangs.
            self._moved_at = term.number, self._clock()
            return None
        still = self._clock() - moved_at
        return f"the beat has not moved for {still:.0f} s" if still > self._patience else None

    def run(self, term: Term, ended: Ending) -> None:
        """Tick until the term ends. What the scheduler raises is raised."""
        # To its very end, so that the next leader finds the schedule's state written and closed.
        with self._leadership.acting():
            self._run(term, ended)

    def _run(self, term: Term, ended: Ending) -> None:
        superseded = False

        def may_act() -> bool:
            return not ended.is_set() and self._leadership.trusted(term)

        def holds() -> bool:
            return not superseded and self._leadership.holds(term)

        if not may_act():
            return
        bell = self._bell = threading.Event()
        ended.ring(bell)
        beat = TermBeat(self._app, self._config, term, may_act, bell, holds)
        try:
            beat.start(self._scheduler_class, self._schedule_filename)
            logger.info("pgleader: beat started (term %d)", term.number)
            while may_act():
                self._moved_at = term.number, self._clock()
                bell.clear()
                if self._look_asked.is_set():
                    self._look_asked.clear()
                    beat.look()
                seconds = beat.turn()
                if not ended.is_set():
                    bell.wait(min(seconds, LONGEST_WAIT))
        except TermOver:
            superseded = not ended.is_set()
        finally:
            beat.stop()
            logger.info("pgleader: beat stopped (term %d)", term.number)


class TermBeat:
    """The beat of one term: a scheduler, the ledger and a publisher, put together."""

    def __init__(
        self,
        app: Any,
        config: Config,
        term: Term,
        may_act: Callable[[], bool],
        bell: threading.Event,
        holds: Callable[[], bool] | None = None,
    ) -> None:
        """Put it together.

        Args:
            app: the Celery app.
            config: the policies, and where the ledger is.
            term: the term.
            may_act: whether the term is still trusted.
            bell: rung when there is something to be written down.
            holds: whether the scheduler may still write its state, as it does last of all; by default `may_act`.

        """
        self._app = app
        self._may_act = may_act
        self._holds = holds
        self._bell = bell
        self._ledger: LedgerPort = Ledger(config, term, may_act)
        self._publisher = Publisher(app, self._send, may_act, self._settled)
        self._keeper = SlotKeeper(config, term, self._ledger, self._publisher)
        self._scheduler: Any = None
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._unwritten: list[Outcome] = []
        self._recovered = False
        self._recover_at = self._prune_at = 0.0
        self._last_trouble = ""

    def start(self, scheduler_class: type[Scheduler], schedule_filename: str) -> None:
        """Set up the scheduler. What it raises is raised."""
        bound = bind(scheduler_class, self._keeper, self._may_act, self._holds)
        self._scheduler = bound(app=self._app, schedule_filename=schedule_filename)
        # RedBeat's own lock, taken by a receiver of `beat_init`, which a worker never sends. Ours is taken already.
        self._scheduler.lock_key = None
        self._publisher.start()

    def look(self) -> None:
        """Have the next turn look for slots that are left claimed."""
        self._recover_at = 0.0

    def turn(self) -> float:
        """Do what is to be done now; return for how many seconds there will be nothing."""
        try:
            self._write_outcomes()
            if not self._recovered:
                self._recover()
            seconds: float = self._scheduler.tick()
            if seconds > CHORE_TIME:
                self._do_chores()
        except LedgerAway as away:
            self._report(str(away))
            self._recovered = False
            return LEDGER_RETRY
        if self._scheduler.should_sync():
            self._scheduler._do_sync()  # noqa: SLF001 - as celery.beat.Service does
        return seconds

    def stop(self) -> None:
        """End it; what is claimed and was not published is left to the next leader."""
        self._publisher.stop(PUBLISHER_PATIENCE)
        try:
            self._write_outcomes()
        except (LedgerAway, TermOver):
            logger.warning("pgleader: what was published last could not be written down; it may be published again")
        self._ledger.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def _recover(self) -> None:
        self._keeper.recover(self._scheduler.find)
        self._scheduler.forget()
        self._recovered = True
        self._last_trouble = ""
        self._recover_at = time.monotonic() + RECOVER_EVERY
        skew = self._ledger.clock_skew
        if abs(skew) > TOLERATED_SKEW:
            logger.warning(
                "pgleader: this host's clock is %.1f s %s of the database's; slots are due by this host's",
                abs(skew),
                "ahead" if skew > 0 else "behind",
            )

    def _do_chores(self) -> None:
        now = time.monotonic()
        if now >= self._recover_at:
            self._recover_at = now + RECOVER_EVERY
            self._keeper.publish_claimed(self._scheduler.find)
            self._keeper.retire_overdue(self._scheduler.find)
        elif now >= self._prune_at and self._keeper.prune() == 0:
            # In small batches, one a turn, until there is nothing left.
            self._prune_at = now + PRUNE_EVERY

    def _write_outcomes(self) -> None:
        while not self._outcomes.empty():
            self._unwritten.append(self._outcomes.get())
        if self._unwritten:
            self._keeper.settle(self._unwritten)
            self._unwritten = []

    def _report(self, trouble: str) -> None:
        if trouble != self._last_trouble:
            logger.warning("pgleader: the ledger cannot be asked, and nothing is sent until it can: %s", trouble)
        self._last_trouble = trouble

    def _send(self, entry: Any, producer: Any) -> None:
        carry(entry.options["headers"])
        self._scheduler.send(entry, producer)

    def _settled(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)
        self._bell.set()


def scheduler_class(scheduler: Any) -> type[Scheduler]:
    """Return the class that `beat_scheduler` stands for: a class, its dotted name, or a registered alias.

    Raises:
        ConfigurationError: there is none.

    """
    aliases: dict[str, str] = dict(load_extension_class_names("celery.beat_schedulers"))  # type: ignore[arg-type]  # the stubs err
    try:
        found: type[Scheduler] = symbol_by_name(scheduler, aliases=aliases)
    except (ImportError, AttributeError, ValueError) as error:
        raise refused("beat_scheduler", scheduler, f"cannot be imported: {error}") from error
    return found
