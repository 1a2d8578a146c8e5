"""What all tests share."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pytest

from example_app.servers import wheel_postgres

pytest_plugins = ["tests.fixtures.servers"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    parser.addoption(
        "--pg-bin", metavar="DIR", type=Path, help="programs of the Postgres to test with [those of the wheel]"
    )
    parser.addoption(
        "--images", metavar="DIR", type=Path, help="write the pictures of the documentation here, such as docs/images"
    )
    parser.addoption(
        "--plant", metavar="BUG", help="plant a bug, of tests/simulation/planted.py; some test has to fail"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Plant a bug."""
    bug = config.getoption("--plant")
    if bug:
        from tests.simulation.planted import planted

        stack = ExitStack()
        config.add_cleanup(stack.close)
        stack.enter_context(planted(bug))


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is tested with what."""
    postgres = (config.getoption("--pg-bin") or wheel_postgres()) / "postgres"
    server = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "psycopg"))
    return f"{packages}; {server}"
