"""The tests that take minutes: `python -m tests.long` runs all of them, and with `--share` a part of each kind."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.scenarios import POOLS, SCHEDULERS
from tests.support.brokers import BROKERS

# On two cores, since parts wait for servers and processes much of their time.
LANES = 3
# A share has one of so many parts of these, so that a few runs have all of them.
OF_PLANTED, OF_MARKED, OF_PG = 3, 5, 3
HISTORIES, SHARED_HISTORIES = 10_000, 3_000
SYSTEMS_POSTGRES = Path("/usr/lib/postgresql")
ENVIRONMENTS = ("pg", "celery-suite", "package", "demo")


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: what the summary calls it.
        arguments: for Python.

    """

    name: str
    arguments: tuple[str, ...]


def whole() -> Iterator[Part]:
    """Give all parts, the longest first."""
    for broker in BROKERS:
        yield chaos(broker, "mixed", "--seconds", "600")
    for scheduler in SCHEDULERS:
        yield chaos("valkey", "handovers", "--scheduler", scheduler)
    for broker in BROKERS:
        yield chaos(broker, "relaying")
        for pool in POOLS:
            yield chaos(broker, "leading", "--pool", pool)
    yield chaos("rabbitmq", "leading", "--queues", "quorum")
    yield Part("planted bugs", ("-m", "tests.simulation", "--plant-share", "1"))
    yield histories(HISTORIES, 0)
    yield marked()
    for name in (*ENVIRONMENTS, "py310-package", "py312-package", "py313-package", "py314-package"):
        yield environment(name)


def share(seed: int) -> Iterator[Part]:
    """Give a part of each kind, chosen by a seed; the longest first."""
    yield chaos(BROKERS[seed % len(BROKERS)], "mixed", "--seed", str(seed))
    yield Part(
        f"planted bugs, {one_of(OF_PLANTED, seed)}",
        ("-m", "tests.simulation", "--plant-share", str(OF_PLANTED), "--seed", str(seed)),
    )
    yield marked("--share", one_of(OF_MARKED, seed))
    name = ENVIRONMENTS[seed // len(BROKERS) % len(ENVIRONMENTS)]
    yield environment(name, *(["--share", one_of(OF_PG, seed)] if name == "pg" else []))
    yield histories(SHARED_HISTORIES, seed * SHARED_HISTORIES)


def one_of(number: int, seed: int) -> str:
    """Return which of so many parts a seed stands for, as pytest's `--share` has it."""
    return f"{seed % number + 1}/{number}"


def chaos(broker: str, scenario: str, *options: str) -> Part:
    """Return a scenario of chaos on a broker."""
    name = " ".join(["chaos:", scenario, "on", broker, *options])
    return Part(name, ("-m", "tests.chaos", "--scenario", scenario, "--broker", broker, *options))


def histories(number: int, seed: int) -> Part:
    """Return so many simulated histories, from a seed on."""
    return Part(
        f"{number} histories from seed {seed}",
        ("-m", "tests.simulation", "--histories", str(number), "--seed", str(seed)),
    )


def marked(*options: str) -> Part:
    """Return the tests that are marked as long; the simulation's commands are parts of their own."""
    return Part(
        " ".join(["tests marked long", *options]),
        ("-m", "pytest", "-m", "long", "--ignore", "tests/simulation", "--durations", "20", *options),
    )


def environment(name: str, *options: str) -> Part:
    """Return an environment of tox, with packages of its own."""
    if name == "pg":
        options = ("--pg-bin", str(min(SYSTEMS_POSTGRES.glob("*/bin"), default=SYSTEMS_POSTGRES)), *options)
    return Part(f"tox run -e {name}", ("-m", "tox", "run", "-e", name, *(["--", *options] if options else [])))


def run(parts: list[Part]) -> bool:
    """Run parts side by side, print each one's output when it has ended; return whether all passed."""
    with ThreadPoolExecutor(LANES) as lanes:
        results = list(lanes.map(run_part, parts))
    print("---- what each part took")
    for part, (seconds, passed) in zip(parts, results, strict=True):
        print(f"{seconds:7.1f} s  {'passed' if passed else 'FAILED'}  {part.name}")
    return all(passed for _, passed in results)


def run_part(part: Part) -> tuple[float, bool]:
    """Run a part; return its seconds, and whether it passed."""
    began = time.monotonic()
    # Nothing of the environment of tox in which this runs is for one that it starts.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TOX")}
    done = subprocess.run(
        [sys.executable, *part.arguments],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - began
    # In one piece, since others print beside it.
    print(
        f"---- {part.name}\n{done.stdout}---- {part.name}: exit code {done.returncode}, {seconds:.0f} s\n",
        end="",
        flush=True,
    )
    return seconds, done.returncode == 0


def main() -> int:
    """Run, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.long", description="The tests that take minutes.")
    parser.add_argument(
        "--share", type=int, nargs="?", const=random.SystemRandom().randrange(10**6), metavar="SEED",
        help="only a part of each kind, chosen by the seed [a new one, which is printed]",
    )  # fmt: skip
    options = parser.parse_args()
    if options.share is None:
        return 0 if run(list(whole())) else 1
    print(f"tox run -e long -- --share {options.share}", flush=True)
    return 0 if run(list(share(options.share))) else 1


if __name__ == "__main__":
    sys.exit(main())
