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


def bind(scheduler_class: type[Scheduler], may_act: Callable[[], bool]) -> type[Scheduler]:
    """Return a subclass whose instances raise `TermOver` in place of what they must no longer do.

    `reserve` and `apply_async` are the two methods that every known scheduler passes through for every entry.

    Args:
        scheduler_class: the app's own.
        may_act: whether the term is still trusted.

    """

    def check() -> None:
        if not may_act():
            raise TermOver

    class TermScheduler(scheduler_class):  # type: ignore[valid-type, misc]  # the base is only known at run time
        def reserve(self, entry: Any) -> Any:
            check()
            return super().reserve(entry)

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            check()
            return super().apply_async(*args, **kwargs)

        def sync(self) -> None:
            # The next leader's state must not be overwritten with what was true in an earlier term.
            if may_act():
                super().sync()

        def _ensure_connected(self) -> Any:
            # As in the base class, but able to end while the broker is away: kombu calls back each second.
            def report(error: Exception, interval: float) -> None:
                logger.error("beat: Connection error: %s. Trying again in %s seconds...", error, interval)

            retries = self.app.conf.broker_connection_max_retries
            return self.connection.ensure_connection(report, retries, callback=check)

    TermScheduler.__name__ = f"Term{scheduler_class.__name__}"
    TermScheduler.__qualname__ = TermScheduler.__name__
    return TermScheduler
