"""Runs something for as long as a term lasts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery_pgleader.election.leadership import Change, Leadership, Term
from celery_pgleader.threads import Ending

RETRY_AFTER = 1.0


class TermRunner:
    """Calls a function, in a thread of its own, once for each term that this node leads.

    The function gets the term and an event that is set when it has to end. One that returns or raises before that
    is called again after a second. A new term's call begins only when the old term's has returned.
    """

    def __init__(
        self,
        leadership: Leadership,
        name: str,
        run: Callable[[Term, Ending], None],
        logger: logging.Logger | None = None,
        *,
        failed: Callable[[str], object] = lambda _reason: None,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            leadership: whose terms.
            name: of what is run, for the log.
            run: the function.
            logger: by default this module's.
            failed: called, with a reason, when the function has raised.

        """
        self._leadership = leadership
        self._name = name
        self._run_term = run
        self._failed = failed
        self._logger = logger or logging.getLogger(__name__)
        self._turn = threading.Condition()
        self._next: tuple[Term, Ending] | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Run in the present term, if there is one, and in each to come."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=f"pgleader-{self._name}", daemon=True)
            self._thread.start()
            self._unsubscribe = self._leadership.subscribe(self._on_change)

    def stop(self, timeout: float = 5.0) -> None:
        """End what runs and run no more; wait for that at most `timeout` seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._unsubscribe is not None:
            self._unsubscribe()
        with self._turn:
            self._stopping = True
            self._end()
            self._turn.notify_all()
        if thread is not threading.current_thread():
            thread.join(timeout)

    def _on_change(self, change: Change) -> None:
        with self._turn:
            self._end()
            if change.gained:
                self._next = change.term, Ending()
            self._turn.notify_all()

    def _end(self) -> None:
        if self._next is not None:
            self._next[1].set()
            self._next = None

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._stopping or self._next is not None)
                if self._next is None:
                    return
                term, ended = self._next
            self._run_once(term, ended)
            ended.wait(RETRY_AFTER)

    def _run_once(self, term: Term, ended: Ending) -> None:
        try:
            if not ended.is_set():
                self._run_term(term, ended)
        except Exception:
            self._logger.exception("pgleader: the %s failed in term %d", self._name, term.number)
            self._failed(f"the {self._name} failed")
