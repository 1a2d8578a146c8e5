"""`python -m tests.simulation`: play many histories, and show the first in which something is not as promised."""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from zlib import crc32

from tests.simulation.planted import BUGS, planted, share
from tests.simulation.scene import draw, play, shrink
from tests.simulation.seams import simulated

LINES = 60
# By then each planted bug is found.
MOST = 10_000
# Histories between two looks for what refers to itself and can be let go of.
COLLECT_EVERY = 200
# And between one line of what was played so far and the next.
TELL_EVERY = 20_000


def main() -> int:
    """Play, or plant; return 1 if a history is not as promised, or a bug of a share is not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=MOST, metavar="N", help="how many [%(default)s]")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the first; the next has S + 1 [%(default)s]"
    )
    parser.add_argument(
        "--plant", choices=sorted(BUGS), metavar="BUG", help="plant a bug: one of tests/simulation/planted.py"
    )
    parser.add_argument(
        "--plant-share",
        type=int,
        metavar="K",
        help="see that every K-th planted bug is found, beginning with number S modulo K",
    )
    options = parser.parse_args()
    if options.plant_share:
        found = [_is_found(name) for name in share(options.plant_share, options.seed)]
        return int(not all(found))
    seeds = range(options.seed, options.seed + options.histories)
    with planted(options.plant) if options.plant else nullcontext(), simulated():
        tally, broken = _play(seeds)
        if broken is not None:
            _show(broken, f" --plant {options.plant}" if options.plant else "")
            return 1
    print(tally)
    return 0


@dataclass
class Tally:
    """What was played so far: how much, and a number that is the same if, and only if, all went the same way."""

    began: float
    histories: int = 0
    faults: int = 0
    terms: int = 0
    seconds: float = 0.0
    mark: int = 0

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{self.histories} histories are as promised: {self.faults} faults, {self.terms} terms, "
            f"{self.seconds / 3600:.1f} simulated hours; mark {self.mark:08x}, in {time.monotonic() - self.began:.0f} s"
        )


def _play(seeds: range) -> tuple[Tally, int | None]:
    """Play histories; return what was as promised, and the seed of the first that was not."""
    tally = Tally(time.monotonic())
    gc.disable()
    for seed in seeds:
        history = draw(seed)
        outcome = play(history)
        if outcome.violations:
            return tally, seed
        tally.histories += 1
        tally.faults += len(history.faults)
        tally.terms += outcome.terms
        tally.seconds += outcome.seconds
        tally.mark = crc32(repr(outcome.mark).encode(), tally.mark)
        if tally.histories % COLLECT_EVERY == 0:
            gc.collect()
        if tally.histories % TELL_EVERY == 0:
            print(tally, flush=True)
    return tally, None


def _show(seed: int, plant: str) -> None:
    history = shrink(draw(seed))
    outcome = play(history, trace=True)
    print(f"seed {seed}; as little of its history as it takes:\n\n{history}\n")
    print("\n".join(outcome.trace[-LINES:]))
    print(f"\nreplay with: python -m tests.simulation --histories 1 --seed {seed}{plant}")
    print("\n".join(outcome.violations))


def _is_found(name: str) -> bool:
    """Plant a bug; tell whether it is found, and say by what."""
    began, tests = time.monotonic(), BUGS[name].found_by
    by = _found_by_tests(name, tests) if tests else _found_by_a_history(name)
    verdict = f"found by {by}" if by else f"NOT FOUND by {tests or f'{MOST} histories'}"
    print(f"{name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    return bool(by)


def _found_by_tests(name: str, tests: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "--plant", name, *tests.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if not failed:
        print(done.stdout + done.stderr)
    return f"{len(failed)} tests, the first is {failed[0]}" if failed else ""


def _found_by_a_history(name: str) -> str:
    with planted(name), simulated():
        _, seed = _play(range(MOST))
        if seed is None:
            return ""
        whole = draw(seed)
        history = shrink(whole)
        faults = f"{len(history.faults)} of its {len(whole.faults)} faults"
        return f"history {seed + 1}, {faults} are enough: {play(history).violations[0]}"


if __name__ == "__main__":
    sys.exit(main())
