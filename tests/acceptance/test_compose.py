"""docker-compose.yml, as far as it can be tested without an engine: its commands and health checks are run for real.

That its keys are Compose's is checked in tests/integration/test_docs_code.py, and the image's build steps are run by
`tox run -e package`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from example_app.servers import EmbeddedPostgres
from tests.fixtures.servers import missing
from tests.support.eventually import eventually
from tests.support.programs import Program
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq
from tests.support.shell import check_program

REPOSITORY = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker")]
PATIENCE = 60.0


def run(command: str, environment: dict[str, str]) -> int:
    """Run a health check as Docker does, with a shell; return the exit code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **environment}
    return subprocess.run(["sh", "-c", command], cwd=REPOSITORY, env=env, capture_output=True, check=False).returncode


def test_three_workers_are_told_apart() -> None:
    """And the files of all services are there."""
    assert len({SERVICES[name]["hostname"] for name in WORKERS}) == len(WORKERS) == 3
    for service in SERVICES.values():
        if "build" in service:
            assert (REPOSITORY / service["build"]["dockerfile"]).exists()
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (REPOSITORY / source).exists()


@pytest.mark.parametrize("name", [name for name in SERVICES if "command" in SERVICES[name] and name != "dashboard"])
def test_commands_and_their_options_exist(name: str) -> None:
    """Those of the workers start with `--pgleader`."""
    words = shlex.split(SERVICES[name]["command"])
    check_program(words)
    if name in WORKERS:
        assert words[:5] == ["celery", "-A", "example_app.shop", "worker", "--pgleader"]


def test_command_of_the_dashboard_and_its_options_exist() -> None:
    """It takes the extra to run it."""
    check_program(shlex.split(SERVICES["dashboard"]["command"]))


def test_health_check_fails_when_the_worker_has_gone(tmp_path: Path, database: str, valkey: str) -> None:
    """And passes while it takes part."""
    environment = {"SHOP_DATABASE_URL": database, "SHOP_BROKER_URL": valkey}
    (check,) = {SERVICES[name]["healthcheck"]["test"] for name in WORKERS}
    assert run(check, environment) != 0
    words = [sys.executable, "-m", *shlex.split(SERVICES[WORKERS[0]]["command"]), "-s", str(tmp_path / "schedule")]
    worker = Program("worker", words, {**os.environ, **environment}, tmp_path)
    try:
        eventually(lambda: observe(Config(database_url=database, election="shop")), timeout=PATIENCE)
        assert run(check, environment) == 0
    finally:
        worker.end()
    eventually(lambda: run(check, environment) != 0, timeout=PATIENCE)


def test_health_check_fails_without_postgres(postgres: EmbeddedPostgres, database: str) -> None:
    """And passes with a server on that port."""
    program = postgres.bin_dir / "pg_isready"
    if not program.exists():
        missing("pg_isready")
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    check = SERVICES["postgres"]["healthcheck"]["test"]
    assert run(check, {"PATH": path, "PGPORT": str(conninfo_to_dict(database)["port"])}) == 0
    assert run(check, {"PATH": path, "PGPORT": "1"}) != 0


def test_health_check_fails_without_rabbitmq(shared_rabbitmq: RabbitMQ) -> None:
    """And passes with a node."""
    program, *words = shlex.split(SERVICES["rabbitmq"]["healthcheck"]["test"])
    assert program == "rabbitmq-diagnostics"
    assert shared_rabbitmq.diagnose(*words) == 0
    script = find_rabbitmq()
    assert script is not None
    absent = RabbitMQ(script)
    try:
        assert absent.diagnose(*words) != 0
    finally:
        absent.close()
