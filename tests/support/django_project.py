"""A Django project in a folder of its own, as Django's and Celery's guides have one begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.pages import blocks_of

ROOT = Path(__file__).parents[2]
PAGE = blocks_of(ROOT / "docs" / "django.md")


class DjangoProject:
    """A project in a folder of its own."""

    def __init__(self, folder: Path, database: str, broker: str, *settings: str) -> None:
        """Start it as Django's and Celery's guides say, with some settings more."""
        self.folder = folder
        self.database = database
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PG", "CELERY_", "DJANGO_"))},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        }
        self.shell("python -m django startproject shop .")
        parts = conninfo_to_dict(database)
        names = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
        default = {"ENGINE": "django.db.backends.postgresql", **{name: parts[key] for name, key in names.items()}}
        self.add_settings(f'DATABASES = {{"default": {default!r}}}', *settings)
        self.add_settings(f"CELERY_BROKER_URL = {broker!r}")
        (folder / "shop" / "celery.py").write_text(PAGE["celery"])
        (folder / "shop" / "__init__.py").write_text(PAGE["init"])

    def add_settings(self, *code: str) -> None:
        """Add to the end of the settings."""
        with (self.folder / "shop" / "settings.py").open("a") as file:
            file.write("\n".join(["", *code, ""]))

    def shell(self, script: str, **environment: str) -> str:
        """Run a shell script; return what it printed."""
        result = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def python(self, code: str) -> str:
        """Run Python with Django set up; return what it printed."""
        (self.folder / "script.py").write_text(f"import django\ndjango.setup()\n{code}")
        return self.shell("python script.py", DJANGO_SETTINGS_MODULE="shop.settings")

    def rows(self, query: str, database: str | None = None) -> list[Any]:
        """Return the rows of a query."""
        with psycopg.connect(make_conninfo(self.database, dbname=database)) as db:
            return db.execute(query.encode()).fetchall()
