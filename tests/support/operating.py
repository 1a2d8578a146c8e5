"""Somebody with a shell and workers to look after."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psycopg

from tests.support.workers import APP, PATIENCE, Workers


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

    def say(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Return what a command prints, all of which fits a terminal and has no colours."""
        result = self.run(*arguments, **environment)
        assert result.returncode == code, result
        assert all(len(line) <= 80 for line in result.stdout.splitlines()), result.stdout
        assert "\x1b" not in result.stdout
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
