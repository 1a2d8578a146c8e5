"""A run of tests leaves nothing behind, and fails if it would have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.leftovers import carrying

ROOT = Path(__file__).parents[2]
SAY_WHERE = """
import os, subprocess, sys
from pathlib import Path
def say_where():
    Path({told!r}).write_text(os.environ["TMPDIR"])
"""
LEAVES_SOMETHING = """
from tests.support import leftovers
leftovers.PATIENCE = 1
def test_it():
    say_where()
    Path(os.environ["TMPDIR"], "left").touch()
    # It shows the folder by where it is alone.
    subprocess.Popen([sys.executable, "-c", "input()"], cwd=os.environ["TMPDIR"], env={}, stdin=subprocess.PIPE)
"""
WAITS = """
def test_it(own_postgres, shared_rabbitmq):
    say_where()
    input()
"""


class Run:
    """A run of tests beside this one."""

    def __init__(self, folder: Path, test: str) -> None:
        """Start it."""
        self._told = folder / "told"
        file = folder / "test_it.py"
        file.write_text(SAY_WHERE.format(told=str(self._told)) + test)
        options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-s", f"--rootdir={folder}", "-c", os.devnull]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(file)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def folder(self) -> Path:
        """Return its temporary folder."""
        eventually(lambda: self.process.poll() is not None or (self._told.exists() and self._told.read_text()))
        return Path(self._told.read_text())

    def assert_gone(self) -> None:
        """Wait until nothing is there of it."""
        folder = self.folder()
        eventually(lambda: not folder.exists() and not carrying(folder))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    """Start runs of a test."""
    runs: list[Run] = []

    def start(test: str) -> Run:
        runs.append(Run(tmp_path, test))
        return runs[-1]

    yield start
    for one in runs:
        one.process.kill()
        one.process.communicate()


def test_run_that_leaves_something_fails_and_names_it(run: Callable[[str], Run]) -> None:
    """And it is removed."""
    left = run(LEAVES_SOMETHING)
    output, _ = left.process.communicate()
    assert left.process.returncode == pytest.ExitCode.TESTS_FAILED
    _, _, named = output.partition("left behind")
    assert re.search(r"\nprocess \d+: .*input\(\)", named)
    assert f"\nfile {left.folder()}/left" in named
    left.assert_gone()


def test_killed_run_leaves_nothing(run: Callable[[str], Run]) -> None:
    """Neither its servers, nor what these have started, nor its folder."""
    killed = run(WAITS)
    assert carrying(killed.folder(), killed.process.pid)
    killed.process.kill()
    killed.assert_gone()
