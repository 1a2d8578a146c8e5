"""The simulated page of memory in which a worker tells its pool's processes which term it leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.world import Process, world


class TrustPage:
    """Takes the place of the worker's side of the page."""

    def __init__(self, process: Process) -> None:
        """Make the page of a process."""
        process.page = self
        self.process = process
        self.term = self.turn = 0
        self.trusted_until = 0.0
        self.is_shut = False
        self.runs: set[BegunRun] = set()
        # What the worker's own process also asks.
        self.trusted: Callable[[], bool] = lambda: True
        # Called whenever it is written.
        self.written: Callable[[], object] = lambda: None

    def write(self, term: int, trusted_until: float) -> None:
        """Tell which term is led, and until when to trust it."""
        self.term, self.trusted_until = term, trusted_until
        self.written()

    def give_turn(self, term: int) -> None:
        """Have runs begin while that term is led."""
        self.turn = term

    def shut(self) -> None:
        """Have no run begin any more."""
        self.is_shut = True

    def has_runs(self) -> bool:
        """Tell whether a run is going on."""
        return bool(self.runs)

    def runs_begun(self) -> int:
        """Return how many runs have begun, of which nobody makes anything here."""
        return 0

    def close(self) -> None:
        """Tell that no term is led."""
        self.write(0, 0.0)


@dataclass(frozen=True, eq=False)
class BegunRun:
    """A run that is going on."""

    page: TrustPage
    term: int

    def end(self) -> None:
        """Be over."""
        self.page.runs.discard(self)


class TrustReader:
    """Takes the place of the other side; as a child of the pool sees it, unless it is the main loop that asks."""

    @staticmethod
    def also_ask(trusted: Callable[[], bool]) -> None:
        """In the worker's own process, also ask who knows before the page does."""
        world().process.page.trusted = trusted

    @staticmethod
    def term() -> int | None:
        """Return the term that may be trusted now, or none."""
        process, thread = world().process, world().thread
        page: TrustPage = process.page
        if thread is not None and thread.name == MAIN and not page.trusted():
            return None
        return page.term if page.term and process.monotonic() < page.trusted_until else None

    @staticmethod
    def is_shut() -> bool:
        """Tell whether no run may begin any more."""
        shut: bool = world().process.page.is_shut
        return shut

    def may_begin(self) -> bool:
        """Tell whether a run may begin now."""
        term = self.term()
        return term is not None and not self.is_shut() and world().process.page.turn == term

    def begin(self) -> BegunRun | None:
        """Begin a run, or return none if it may not begin."""
        term, page = self.term(), world().process.page
        if term is None or not self.may_begin():
            return None
        run = BegunRun(page, term)
        page.runs.add(run)
        return run


# The name of the thread in which a worker's main loop runs.
MAIN = "main"
