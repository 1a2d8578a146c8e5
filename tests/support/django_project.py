"""A Django project in a folder of its own, as Django's and Celery's guides have one begin."""

from __future__ import annotations

from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tests.support.pages import ROOT, blocks_of
from tests.support.project import Project

PAGE = blocks_of(ROOT / "docs" / "django.md")


class DjangoProject(Project):
    """A project in a folder of its own."""

    def __init__(self, folder: Path, database: str, broker: str, *settings: str) -> None:
        """Start it as Django's and Celery's guides say, with some settings more."""
        super().__init__(folder, database)
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

    def python(self, code: str) -> str:
        """Run Python with Django set up; return what it printed."""
        (self.folder / "script.py").write_text(f"import django\ndjango.setup()\n{code}")
        return self.shell("python script.py", DJANGO_SETTINGS_MODULE="shop.settings")
