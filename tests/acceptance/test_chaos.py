"""Chaos in short: `python -m tests.chaos`, with another seed each time."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.chaos.check import check
from tests.chaos.driver import run
from tests.chaos.fleet import servers
from tests.chaos.scenarios import SCENARIOS

WORKERS, SECONDS = 3, 20.0


@pytest.mark.long
# Most of it is the time that Redis and kombu take, if it comes to that, to give back what a dead worker had.
@pytest.mark.timeout(400)
def test_every_promise_is_kept(tmp_path: Path) -> None:
    """Whatever is done to the workers, Postgres and the broker."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"python -m tests.chaos --workers {WORKERS} --seconds {SECONDS:g} --seed {seed}")
    scenario = dataclasses.replace(SCENARIOS["mixed"], workers=WORKERS, seconds=SECONDS)
    with servers("valkey") as (postgres, broker):
        report = check(run(scenario, postgres, broker, tmp_path, seed=seed))
    # As text, which is shown whole.
    assert report.faultless, f"seed {seed}: {vars(report)}"
    assert report.faults
