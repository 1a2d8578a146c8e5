"""What all tests share."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import pytest

from example_app.servers import wheel_postgres
from tests.support.leftovers import Guarded

pytest_plugins = ["tests.fixtures.servers"]

GUARDED = pytest.StashKey[Guarded]()
LEFT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    parser.addoption(
        "--pg-bin", metavar="DIR", type=Path, help="programs of the Postgres to test with [those of the wheel]"
    )
    parser.addoption(
        "--images", metavar="DIR", type=Path, help="write the pictures of the documentation here, such as docs/images"
    )
    parser.addoption(
        "--share", metavar="K/N", help="only the K-th of N parts of the tests, each of which is in one of them"
    )
    parser.addoption(
        "--plant", metavar="BUG", help="plant a bug, of tests/simulation/planted.py; some test has to fail"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a temporary folder that goes with it, and plant a bug."""
    # Those who run tests for pytest-xdist inherit it.
    if not hasattr(config, "workerinput"):
        config.stash[GUARDED] = Guarded()
        config.add_cleanup(config.stash[GUARDED].remove)
    bug = config.getoption("--plant")
    if bug:
        from tests.simulation.planted import planted

        stack = ExitStack()
        config.add_cleanup(stack.close)
        stack.enter_context(planted(bug))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not in the share that is asked for."""
    share = config.getoption("--share")
    if share:
        part, _, of = share.partition("/")
        chosen = [item for item in items if crc32(item.nodeid.encode()) % int(of) == int(part) - 1]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves something behind, once its tests and those who ran them have ended."""
    guarded = session.config.stash.get(GUARDED, None)
    if guarded is not None:
        session.config.stash[LEFT] = guarded.left()
        if session.config.stash[LEFT] and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left behind."""
    left = config.stash.get(LEFT, [])
    if left:
        terminalreporter.section("left behind", red=True)
        terminalreporter.write("".join(f"{line}\n" for line in left))


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is tested with what."""
    postgres = (config.getoption("--pg-bin") or wheel_postgres()) / "postgres"
    server = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "psycopg"))
    return f"{packages}; {server}"
