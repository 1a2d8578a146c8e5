"""A pytest plugin that has every scheduler that a test makes bound to a term."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from celery.beat import Scheduler

from celery_pgleader.beat import scheduler as beat_scheduler
from tests.celery_suite.replaced import REPLACED
from tests.celery_suite.stand_ins import Clock, make_bound


class Binding:
    """Binds at the moment at which a scheduler is made: whatever its class, and wherever a test found or made that."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._running = ""
        self._bound: set[str] = set()

    def pytest_configure(self) -> None:
        """Begin to bind."""

        def make(scheduler_class: type[Scheduler], *args: Any, **kwargs: Any) -> Any:
            self._bound.add(self._running)
            return make_bound(scheduler_class, kwargs["app"] if "app" in kwargs else args[0], self._clock)

        Scheduler.__new__ = make  # type: ignore[method-assign,assignment]
        beat_scheduler.time = self._clock  # type: ignore[attr-defined,assignment]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Expect the cases that are listed to fail."""
        for item in items:
            case = item.nodeid.partition("::")[2]
            reason = REPLACED.get(case) or REPLACED.get(case.partition("[")[0])
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a case."""
        self._running = nodeid
        self._clock.schedulers.clear()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many cases did what."""
        passed = {report.nodeid for report in terminalreporter.getreports("passed") if report.when == "call"}
        counts = {
            "pass with a scheduler that is bound to a term": len(passed & self._bound),
            "make no scheduler, and pass": len(passed - self._bound),
            "test what is replaced, and are listed with the reason": len(terminalreporter.getreports("xfailed")),
        }
        terminalreporter.section(f"Celery {version('celery')}, t/unit/app/test_beat.py")
        for what, count in counts.items():
            terminalreporter.line(f"{count:4} cases {what}")
