"""`python -m tests.simulation`: play many histories, and show the first in which something is not as promised."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from contextlib import nullcontext
from zlib import crc32

from tests.simulation.planted import BUGS, planted
from tests.simulation.scene import draw, play, shrink
from tests.simulation.seams import simulated

LINES = 60
# Histories between two looks for what refers to itself and can be let go of.
COLLECT_EVERY = 200


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
        return _play(range(options.seed, options.seed + options.histories))


def _play(seeds: range) -> int:
    began = time.monotonic()
    terms, faults, seconds, mark = 0, 0, 0.0, 0
    gc.disable()
    for seed in seeds:
        history = draw(seed)
        outcome = play(history)
        if outcome.violations:
            _show(seed)
            return 1
        terms, faults, seconds = terms + outcome.terms, faults + len(history.faults), seconds + outcome.seconds
        mark = crc32(repr(outcome.mark).encode(), mark)
        if seed % COLLECT_EVERY == 0:
            gc.collect()
    print(
        f"{len(seeds)} histories from seed {seeds.start} on are as promised: {faults} faults, {terms} terms,"
        f" {seconds / 3600:.1f} simulated hours in {time.monotonic() - began:.0f} s; mark {mark:08x}"
    )
    return 0


def _show(seed: int) -> None:
    history = shrink(draw(seed))
    outcome = play(history, trace=True)
    print(f"seed {seed}; as little of its history as it takes:\n\n{history}\n")
    print("\n".join(outcome.trace[-LINES:]))
    print(f"\nreplay with: python -m tests.simulation --histories 1 --seed {seed}")
    print("\n".join(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())
