"""Two parts: what takes milliseconds, alone and in turns; then what takes seconds, all contenders side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.failover.contenders import OURS, PERIOD, Contender, quick_ones, slow_ones
from benchmarks.failover.lane import DISCONNECT, FAULTS, KILL, RESTART, STOP, TERM, Lane, Outcome
from benchmarks.figures import Figure, Results
from benchmarks.rivals import RIVALS, install

# By when all nodes of all contenders run.
START = 30.0
# These hand over at once, where anybody does; in the others, something has to run out or come back first.
SUDDEN = (TERM, KILL, DISCONNECT)
GROUPS = {
    "lock": ("The election alone: from the fault to the next leader", "ms"),
    "leader": ("Schedulers: from the fault to the next leader", "s"),
    "tick": ("Schedulers: from the fault to the next tick, of one a second", "s"),
    "missed": ("Ticks missed by one fault", ""),
    "duplicated": ("Ticks duplicated by one fault", ""),
}
FIGURES = {
    f"{key} after {fault}": Figure(group, fault, unit) for key, (group, unit) in GROUPS.items() for fault in FAULTS
}


@dataclass(frozen=True)
class Extent:
    """How much is done.

    Attributes:
        rounds: of the part in turns.
        seconds: for which faults go on in the part side by side; each contender gets each fault once at least.
        bound: seconds after which it is not waited for a next leader any more.

    """

    rounds: int
    seconds: float
    bound: float


QUICK = Extent(rounds=5, seconds=45, bound=12)
# RedBeat's default takes half an hour.
FULL = Extent(rounds=50, seconds=7200, bound=2000)


def run(*, quick: bool) -> Results:
    """Measure."""
    extent = QUICK if quick else FULL
    results = Results(OURS, FIGURES)
    missing = install(RIVALS)
    results.notes += [f"{rival.title} could not be installed" for rival in missing]
    in_turns(results, quick_ones(), extent)
    absent = tuple(rival.title for rival in missing)
    suffering: list[tuple[Contender, Sequence[str]]] = [
        (one, FAULTS) for one in slow_ones() if not one.name.startswith(absent)
    ]
    suffering += [(one, (STOP, RESTART)) for one in quick_ones() if not one.ticks]
    side_by_side(results, suffering, extent)
    return results


def in_turns(results: Results, contenders: Sequence[Contender], extent: Extent) -> None:
    """Measure what takes milliseconds: one fault of one contender at a time, while all others are at rest."""
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(contender, ticks=False)) for contender in contenders]
        for number in range(extent.rounds):
            for fault in SUDDEN:
                # Who comes first or last has no advantage.
                for lane in lanes if number % 2 else reversed(lanes):
                    outcome = lane.trial(fault, extent.bound)
                    _add(results, lane.contender, f"lock after {fault}", outcome.leader, 1000, extent.bound)
    results.about |= {contender.name: contender.about for contender in contenders}


def side_by_side(results: Results, contenders: Sequence[tuple[Contender, Sequence[str]]], extent: Extent) -> None:
    """Measure what takes seconds: all at the same time, each contender gets one of its faults after the other."""
    until = time.monotonic() + START + extent.seconds
    histories: list[list[tuple[str, Outcome]]] = [[] for _ in contenders]
    with ThreadPoolExecutor(len(contenders)) as pool:
        suffering = [
            pool.submit(_suffer, contender, faults, history, extent.bound, until)
            for (contender, faults), history in zip(contenders, histories, strict=True)
        ]
    for (contender, _), history, ended in zip(contenders, histories, suffering, strict=True):
        results.about[contender.name] = contender.about
        for fault, outcome in history:
            _record(results, contender, fault, outcome, extent.bound)
        if ended.exception():
            # One that cannot be brought in order again does not keep the others from being measured.
            results.notes.append(f"{contender.name} broke off after {len(history)} faults")
            print(ended.exception(), file=sys.stderr)


def _suffer(
    contender: Contender, faults: Sequence[str], history: list[tuple[str, Outcome]], bound: float, until: float
) -> None:
    with Lane(contender) as lane:
        faults = [fault for fault in faults if lane.applies(fault)]
        # Each at least once.
        while len(history) < len(faults) or time.monotonic() < until:
            fault = faults[len(history) % len(faults)]
            history.append((fault, lane.trial(fault, bound)))


def _record(results: Results, contender: Contender, fault: str, outcome: Outcome, bound: float) -> None:
    name = contender.name
    if outcome.changed:
        group, factor = ("leader", 1) if contender.ticks else ("lock", 1000)
        _add(results, contender, f"{group} after {fault}", outcome.leader, factor, bound)
    if contender.ticks:
        _add(results, contender, f"tick after {fault}", outcome.tick, 1, bound)
        if outcome.tick is None:
            results.add_beyond(name, f"missed after {fault}", bound / PERIOD)
        else:
            results.add(name, f"missed after {fault}", outcome.missed)
            results.add(name, f"duplicated after {fault}", outcome.duplicated)


def _add(
    results: Results, contender: Contender, figure: str, seconds: float | None, factor: float, bound: float
) -> None:
    if seconds is None:
        results.add_beyond(contender.name, figure, bound * factor)
    else:
        results.add(contender.name, figure, seconds * factor)
