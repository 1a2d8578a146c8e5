"""`python -m tests.simulation`: play many histories, and show the first in which something is not as promised."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from zlib import crc32

from tests.simulation.planted import BUGS, planted
from tests.simulation.scene import History, Outcome, draw, play, shrink
from tests.simulation.seams import simulated

LINES = 60
# Histories between two looks for what refers to itself and can be let go of.
COLLECT_EVERY = 200
# And between one line of what was played so far and the next.
TELL_EVERY = 20_000


def main() -> int:
    """Play; return 1 if one of the histories is not as promised, after which no more are played."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000, metavar="N", help="how many [%(default)s]")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the first; the next has S + 1 [%(default)s]"
    )
    parser.add_argument(
        "--plant", choices=sorted(BUGS), metavar="BUG", help="plant a bug: one of tests/simulation/planted.py"
    )
    options = parser.parse_args()
    with planted(options.plant) if options.plant else nullcontext(), simulated():
        seeds = range(options.seed, options.seed + options.histories)
        return _play(seeds, f" --plant {options.plant}" if options.plant else "")


@dataclass
class Tally:
    """What was played so far.

    Attributes:
        histories: how many.
        faults: how many.
        terms: how many.
        seconds: of simulated time.
        mark: a number that is the same if, and only if, all went the same way.

    """

    histories: int = 0
    faults: int = 0
    terms: int = 0
    seconds: float = 0.0
    mark: int = 0

    def add(self, history: History, outcome: Outcome) -> None:
        """Count a history."""
        self.histories += 1
        self.faults += len(history.faults)
        self.terms += outcome.terms
        self.seconds += outcome.seconds
        self.mark = crc32(repr(outcome.mark).encode(), self.mark)

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{self.histories} histories are as promised: {self.faults} faults, {self.terms} terms,"
            f" {self.seconds / 3600:.1f} simulated hours; mark {self.mark:08x}"
        )


def _play(seeds: range, plant: str) -> int:
    began = time.monotonic()
    tally = Tally()
    gc.disable()
    for seed in seeds:
        history = draw(seed)
        outcome = play(history)
        if outcome.violations:
            _show(seed, plant)
            return 1
        tally.add(history, outcome)
        if tally.histories % COLLECT_EVERY == 0:
            gc.collect()
        if tally.histories % TELL_EVERY == 0:
            print(f"{tally}, in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{tally}, in {time.monotonic() - began:.0f} s")
    return 0


def _show(seed: int, plant: str) -> None:
    history = shrink(draw(seed))
    outcome = play(history, trace=True)
    print(f"seed {seed}; as little of its history as it takes:\n\n{history}\n")
    print("\n".join(outcome.trace[-LINES:]))
    print(f"\nreplay with: python -m tests.simulation --histories 1 --seed {seed}{plant}")
    print("\n".join(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())
