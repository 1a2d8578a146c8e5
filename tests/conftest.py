"""What all tests share."""

from __future__ import annotations

from importlib.metadata import version

import pytest

pytest_plugins = ["tests.fixtures.servers"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    parser.addoption("--pg-bin", metavar="DIR", help="programs of the Postgres to test with [those of the wheel]")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is tested with what."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "psycopg"))
    return f"{packages}; Postgres programs: {config.getoption('--pg-bin') or 'of the wheel'}"
