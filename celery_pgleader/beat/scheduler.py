"""Binds any `celery.beat.Scheduler` to a term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.beat import Scheduler
from celery.utils.log import get_logger

logger = get_logger(__name__)


class TermOver(BaseException):
    """The term that a scheduler was made for is over.

    No `Exception`, because `Scheduler.apply_entry` swallows those.
    """


class TermBound:
    """What a scheduler's class gets in front of its own methods; see `bind`."""

    # Stand for what the scheduler's class brings.
    app: Any
    connection: Any

    @staticmethod
    def may_act() -> bool:
        """Tell whether the term is still trusted."""
        raise NotImplementedError

    def reserve(self, entry: Any) -> Any:
        """Take note that an entry is being sent."""
        self._check()
        return super().reserve(entry)  # type: ignore[misc]  # the scheduler's

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Send an entry."""
        self._check()
        return super().apply_async(*args, **kwargs)  # type: ignore[misc]  # the scheduler's

    def sync(self) -> None:
        """Write the schedule's state, unless that may be the next leader's by now."""
        if self.may_act():
            super().sync()  # type: ignore[misc]  # the scheduler's

    def close(self) -> None:
        """End; what is to be kept was written by `sync`."""
        shelf = getattr(self, "_store", None)
        if shelf is not None:
            # A shelf that is closed writes all that it has in memory.
            shelf.cache.clear()
        super().close()  # type: ignore[misc]  # the scheduler's

    def _ensure_connected(self) -> Any:
        # As in the base class, but able to end while the broker is away: kombu calls back each second.
        def report(error: Exception, interval: float) -> None:
            logger.error("beat: Connection error: %s. Trying again in %s seconds...", error, interval)

        retries = self.app.conf.broker_connection_max_retries
        return self.connection.ensure_connection(report, retries, callback=self._check)

    def _check(self) -> None:
        if not self.may_act():
            raise TermOver


def bind(scheduler_class: type[Scheduler], may_act: Callable[[], bool]) -> type[Scheduler]:
    """Return a subclass whose instances raise `TermOver` in place of what they must no longer do.

    `reserve` and `apply_async` are the two methods that every known scheduler passes through for every entry.

    Args:
        scheduler_class: the app's own.
        may_act: whether the term is still trusted.

    """
    name = f"Term{scheduler_class.__name__}"
    return type(name, (TermBound, scheduler_class), {"may_act": staticmethod(may_act)})
