"""Histories of faults, each the same whenever it is played, and planted bugs that they have to bring to light."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.planted import BUGS, share

PARTS, HISTORIES = 4, 2_500


def simulate(*options: object, **environ: str) -> Any:
    """Run it as it is run by hand, in a process of its own: it replaces threads and clocks in the package."""
    # Not measured: what it covers is what it replaces nothing of, and measuring would take longer than the histories.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *map(str, options)],
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_some_histories_are_as_promised() -> None:
    """The simulation works; `test_histories` plays many more."""
    done = simulate("--histories", 300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 histories are as promised" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_histories(part: int) -> None:
    """Whatever goes wrong, all is as promised; and some time later, all is done that is due."""
    done = simulate("--histories", HISTORIES, "--seed", part * HISTORIES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", [39143, 65914, 85227])
def test_a_history_that_was_not_as_promised(seed: int) -> None:
    """Once, in a long run, or, with the order of `SETTLE` taken away, now; `docs/simulation.md` tells of both."""
    done = simulate("--histories", 1, "--seed", seed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_makes_one_history() -> None:
    """Whatever else there is by chance, such as the order of sets."""
    marks = {
        re.search(r"mark (\w+)", simulate("--histories", 100, PYTHONHASHSEED=str(number)).stdout)[1]  # type: ignore[index]  # it is there
        for number in range(3)
    }
    assert len(marks) == 1


def test_the_documentation_lists_the_planted_bugs() -> None:
    """With who has to find them."""
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    listed = dict(re.findall(r"^\| `([\w-]+)` \| .+ \| (.+) \|$", page, re.MULTILINE))
    assert {name: not bug.found_by for name, bug in BUGS.items()} == {
        name: who == "the simulation" for name, who in listed.items()
    }


def test_shares_have_each_planted_bug_once() -> None:
    """Whatever the seed is."""
    assert sorted(name for seed in (7, 8, 9) for name in share(3, seed)) == sorted(BUGS)


def test_a_planted_bug_ends_the_run_with_a_history_that_shows_it() -> None:
    """And with how to play it again."""
    done = simulate("--plant", "deleted-before-it-is-dispatched")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "replay with: python -m tests.simulation --histories 1 --seed" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """By a history that shows it and little else, or by other tests where it takes a real part or the inside of one."""
    done = simulate("--plant-share", len(BUGS), "--seed", [*BUGS].index(bug))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{bug}: found by " in done.stdout
