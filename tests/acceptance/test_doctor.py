"""`doctor` on the example app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from example_app.cluster import Cluster
from tests.support.eventually import eventually

PATIENCE = 60.0


def test_doctor_finds_nothing_wrong_with_the_example_app(tmp_path: Path, database: str, valkey: str) -> None:
    """Before its workers are started, and when they run."""
    environment = {"SHOP_DATABASE_URL": database, "SHOP_BROKER_URL": valkey}

    def findings() -> object:
        command = [sys.executable, "-m", "celery", "-A", "example_app.shop", "pgleader", "doctor", "--json"]
        result = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (result.returncode == 0) == (json.loads(result.stdout) == []), result
        return json.loads(result.stdout)

    assert findings() == []
    cluster = Cluster(tmp_path, environment)
    try:
        cluster.start_workers(2)
        eventually(lambda: len(observe(Config(database_url=database, election="shop"))) == 2, timeout=PATIENCE)
        assert findings() == []
    finally:
        cluster.kill()
