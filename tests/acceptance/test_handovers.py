"""Incident 3: handovers of every kind, placed across due instants, for each scheduler, and with a ledger apart.

A short form of `python -m tests.chaos --scenario handovers`, which makes two hundred of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.check import check
from tests.chaos.driver import run
from tests.chaos.scenarios import SCENARIOS, SCHEDULERS

TIMES = 8
# Each takes half a minute.
ORDINARY = "persistent"


@pytest.mark.parametrize(
    "scheduler", [pytest.param(name, marks=() if name == ORDINARY else pytest.mark.long) for name in SCHEDULERS]
)
def test_incident_3_each_slot_is_published_once(
    scheduler: str, tmp_path: Path, postgres: EmbeddedPostgres, database: str, own_valkey: EmbeddedValkey
) -> None:
    """None is lost, none is sent under two task ids, and each is accounted for."""
    scenario = dataclasses.replace(SCENARIOS["handovers"], scheduler=scheduler, times=TIMES)
    report = check(run(scenario, postgres, own_valkey, tmp_path, seed=3, dbname=database.rpartition("/")[2]))
    # As text, which is shown whole.
    assert report.faultless, str(vars(report))
    assert report.slots["published"] > 0
    assert report.terms["number"] > TIMES
