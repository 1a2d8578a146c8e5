"""What one sees of the demo while it runs: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from example_app.cluster import Worker
from example_app.summary import Fact, Fault, judge
from example_app.watch import Seats

LINE_EVERY = 5.0


@dataclass(frozen=True)
class Scene:
    """How things stand.

    Attributes:
        elapsed: seconds since the shop opened.
        seconds: for how many it will be open.
        seats: who leads and who is next.
        workers: the fleet.
        faults: what was done to leaders so far.
        orders: how many orders were placed.
        facts: what tasks have recorded.

    """

    elapsed: float
    seconds: float
    seats: Seats
    workers: Sequence[Worker]
    faults: Sequence[Fault]
    orders: int
    facts: Sequence[Fact]

    @property
    def term(self) -> int | None:
        """The present term, as far as its leader has told."""
        return max((fact.term for fact in self.facts if fact.kind == "gained" and fact.term), default=None)

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """How many runs there were, by node and kind."""
        return Counter((fact.node, fact.kind) for fact in self.facts)

    def total(self, kind: str) -> int:
        """Return how many runs of a kind there were."""
        return sum(fact.kind == kind for fact in self.facts)

    def role(self, worker: Worker) -> str:
        """Return what a worker is."""
        if worker.node == self.seats.leader:
            return "leader"
        if not worker.is_running:
            return "down"
        if worker.node in self.seats.successors:
            return "next in line"
        return "standing by"


class View(Protocol):
    """Shows the demo."""

    def say(self, text: str) -> None:
        """Tell of something that has happened."""

    def show(self, scene: Scene) -> None:
        """Show how things stand; called several times a second."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainView:
    """Prints what happens, and every few seconds how things stand."""

    def __init__(self) -> None:
        """Prepare."""
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def show(self, scene: Scene) -> None:
        """Print a line if the last one is old enough."""
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + LINE_EVERY
        leads = f"{scene.seats.leader} leads (term {scene.term})" if scene.seats.leader else "nobody leads"
        self.say(
            f"{scene.elapsed:4.0f} s  {leads}; {len(scene.faults)} failovers, {scene.total('tick')} ticks,"
            f" {scene.total('order')} of {scene.orders} orders, {scene.total('restock')} leader-only"
        )

    def close(self) -> None:
        """Nothing to undo."""


class LiveView:
    """Redraws a table in a terminal; what is said scrolls by above it."""

    def __init__(self) -> None:
        """Begin to draw."""
        self._live = Live(auto_refresh=False, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._live.console.print(text, highlight=False, markup=False)

    def show(self, scene: Scene) -> None:
        """Redraw."""
        self._live.update(_draw(scene), refresh=True)

    def close(self) -> None:
        """Take the table away again."""
        self._live.stop()


def choose(*, live: bool) -> View:
    """Return the view that suits where the output goes."""
    return LiveView() if live and sys.stdout.isatty() else PlainView()


def _draw(scene: Scene) -> RenderableType:
    head = Text.assemble(
        (scene.seats.leader or "nobody", "bold green"),
        f" leads, term {scene.term or '-'}    ",
        f"{scene.total('tick')} ticks    {scene.total('order')} of {scene.orders} orders handled    ",
        f"{scene.total('restock')} leader-only    {scene.elapsed:.0f} of {scene.seconds:.0f} s",
    )

    fleet = Table(expand=True, box=None)
    for title in ("worker", "process", ""):
        fleet.add_column(title)
    for title in ("ticks", "orders", "leader-only"):
        fleet.add_column(title, justify="right")
    for worker in scene.workers:
        role = scene.role(worker)
        style = {"leader": "bold green", "down": "red"}.get(role, "")
        counts = [str(scene.counts[worker.node, kind]) for kind in ("tick", "order", "restock")]
        fleet.add_row(worker.node, str(worker.process.pid), role, *counts, style=style)

    failovers = Table(expand=True, box=None)
    for title in ("failover", "leader", "lock after", "tick after"):
        failovers.add_column(title)
    for fault in scene.faults:
        failover = judge(fault, scene.facts)
        lock, tick = _milliseconds(failover.lock_ms), _milliseconds(failover.first_tick_ms)
        failovers.add_row(fault.kind, fault.node, lock, tick)
    return Panel(Group(head, "", fleet, "", failovers), title="celery-pgleader: one leader among the workers")


def _milliseconds(time_: float | None) -> str:
    return "…" if time_ is None else f"{time_:.0f} ms"
