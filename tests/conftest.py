"""What all tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import pytest

from example_app.servers import wheel_postgres

pytest_plugins = ["tests.fixtures.servers"]

# Where there is room for them, servers keep their files in memory: a new database takes a tenth of the time.
MEMORY, ROOM = Path("/dev/shm"), 2 * 1024**3


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
        config.add_cleanup(make_temporary_folder())
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


def make_temporary_folder() -> Callable[[], None]:
    """Have all temporary files of this process and its children in one folder; return what removes it."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="pgleader-tests-", dir=MEMORY if in_memory else None))
    # Postgres is run by another user, who has to get through.
    folder.chmod(0o711)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    def remove() -> None:
        tempfile.tempdir = before[0]
        if before[1] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(folder)

    return remove


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is tested with what."""
    postgres = (config.getoption("--pg-bin") or wheel_postgres()) / "postgres"
    server = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "psycopg"))
    return f"{packages}; {server}"
