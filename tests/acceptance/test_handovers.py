"""Incident 3: handovers of every kind, placed across due instants, for each scheduler, and with a ledger apart.

A short form of `python -m tests.handovers`, which makes two hundred of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.handovers.app import SCHEDULERS
from tests.handovers.driver import Driver


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_incident_3_each_slot_is_published_once(
    scheduler: str, tmp_path: Path, own_postgres: EmbeddedPostgres, own_valkey: EmbeddedValkey
) -> None:
    """None is lost, none is sent under two task ids, and each is accounted for."""
    with Driver(scheduler, own_postgres.url(), own_valkey.url, tmp_path, seed=3) as driver:
        count = driver.run(8)
    assert count.faultless, str(count)
    assert count.published > 0
    assert count.terms > 8
