"""A project of somebody else's, in a folder of its own, that is worked on in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from tests.support.pages import ROOT


class Project:
    """A project with a database; what is run in it knows nothing of the settings of this process."""

    def __init__(self, folder: Path, database: str, **environment: str) -> None:
        """Begin with nothing in the folder."""
        self.folder = folder
        self.database = database
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PG", "CELERY_", "DJANGO_"))},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            **environment,
        }

    def run(self, *command: str, codes: tuple[int, ...] = (0,), **environment: str) -> str:
        """Run a command to its end; return what it printed."""
        env = {**self.environment, **environment}
        result = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert result.returncode in codes, result
        assert "Traceback" not in result.stdout + result.stderr, result
        return result.stdout

    def shell(self, script: str, *codes: int, **environment: str) -> str:
        """Run a shell script."""
        return self.run("sh", "-e", "-c", script, codes=codes or (0,), **environment)

    def execute(self, *statements: str, role: str | None = None) -> None:
        """Execute SQL, each text on its own."""
        with psycopg.connect(make_conninfo(self.database, **({"user": role} if role else {})), autocommit=True) as db:
            for statement in statements:
                db.execute(statement.encode())

    def rows(self, query: str, database: str | None = None) -> list[Any]:
        """Return the rows of a query."""
        with psycopg.connect(make_conninfo(self.database, dbname=database)) as db:
            return db.execute(query.encode()).fetchall()
