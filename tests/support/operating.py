"""Somebody with a shell and workers to look after."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import psycopg

from tests.support.workers import APP, PATIENCE, Workers

# One process for many commands: to start one takes longer than what it does.
MANY = """
import json, sys
from celery.bin.celery import celery
from click.testing import CliRunner
for line in sys.stdin:
    done = CliRunner().invoke(celery, json.loads(line))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


class Operator:
    """Runs `celery -A proj pgleader ...`."""

    def __init__(self, workers: Workers, database: str, app: str = APP) -> None:
        """Begin."""
        self.workers = workers
        self.database = database
        self._app = app

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        result = subprocess.run(
            [sys.executable, "-m", "celery", "-A", self._app, "pgleader", *arguments],
            env={**self.workers.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert "Traceback" not in result.stderr, result
        return result

    def run_each(self, commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
        """Run commands, one after the other."""
        lines = [json.dumps(["-A", self._app, "pgleader", *words]) for words in commands]
        told = subprocess.run(
            [sys.executable, "-c", MANY],
            env=self.workers.environment,
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
        assert told.returncode == 0, told
        results = [json.loads(line) for line in told.stdout.splitlines()]
        return [subprocess.CompletedProcess(words, *result) for words, result in zip(commands, results, strict=True)]

    def say(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Return what a command prints, all of which fits a terminal and has no colours."""
        result = self.run(*arguments, **environment)
        assert result.returncode == code, result
        check_looks(result.stdout)
        return result.stdout

    def ask(self, *arguments: str, code: int = 0, **environment: str) -> Any:
        """Return what a command says in JSON."""
        result = self.run(*arguments, "--json", **environment)
        assert result.returncode == code, result
        return json.loads(result.stdout)

    def query(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


def check_looks(text: str) -> None:
    """See that it fits a terminal, and has no colours."""
    assert all(len(line) <= 80 for line in text.splitlines()), text
    assert "\x1b" not in text
