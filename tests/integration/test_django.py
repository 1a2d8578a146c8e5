"""The database of a Django project is found, as the project describes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

SCRIPT = """
import dataclasses, django, json
from celery import Celery
django.setup()
from celery_pgleader.config import Config
from celery_pgleader.errors import ConfigurationError
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
try:
    config = Config.from_app(app)
except ConfigurationError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"url": config.database_url, **dataclasses.asdict(config)}, default=str))
"""


def config_of(folder: Path, settings: str) -> dict[str, Any]:
    """Return what a Django project with these settings comes to."""
    (folder / "project_settings.py").write_text(settings)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "CELERY_"))}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "project_settings"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_default_database_is_used(tmp_path: Path) -> None:
    """With libpq's own options, and without Django's and psycopg's."""
    settings = """
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "shop", "USER": "app", "PASSWORD": "it's s3cret",
    "HOST": "db", "PORT": 5433,
    "OPTIONS": {"sslmode": "require", "pool": True, "isolation_level": 2, "server_side_binding": True},
}}
CELERY_PGLEADER_TTL = 7
"""
    found = config_of(tmp_path, settings)
    assert conninfo_to_dict(found["url"]) == {
        "dbname": "shop",
        "user": "app",
        "password": "it's s3cret",
        "host": "db",
        "port": "5433",
        "sslmode": "require",
    }
    assert found["ttl"] == 7


def test_settings_may_be_in_upper_case_behind_the_namespace(tmp_path: Path) -> None:
    """In upper case, behind the namespace; also the dicts."""
    values: dict[str, Any] = {
        "database_url": "host=elsewhere",
        "election": "bazaar",
        "lock": 7,
        "ttl": 9.0,
        "renew_interval": 1.5,
        "trust_margin": 0.5,
        "poll_interval": 3.0,
        "channels": {"orders": "shop.on_order"},
        "schedule": {"report": {"misfire": "all"}},
        "retention": 3600.0,
        "drain_timeout": 12.0,
        "priority": 3,
        "app_version": "v7",
        "django_database": "default",
    }
    found = config_of(tmp_path, "\n".join(f"CELERY_PGLEADER_{k.upper()} = {v!r}" for k, v in values.items()))
    assert found["channels"]["orders"][0]["task"] == "shop.on_order"
    assert found["schedule"]["report"]["misfire"] == "Misfire.ALL"
    plain = values.keys() - {"channels", "schedule"}
    assert {name: found[name] for name in plain} == {name: values[name] for name in plain}


def test_misspelt_setting_is_named_as_it_was_written(tmp_path: Path) -> None:
    """With what was probably meant."""
    found = config_of(tmp_path, "CELERY_PGLEADER_TLL = 7")
    assert found["error"] == "CELERY_PGLEADER_TLL: there is no such setting; did you mean pgleader_ttl?"


def test_named_database_is_used(tmp_path: Path) -> None:
    """With a service of libpq's, which leaves all else to its own file."""
    settings = """
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "x"},
    "ledger": {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"service": "ledger", "passfile": "/pass"}},
}
CELERY_PGLEADER_DJANGO_DATABASE = "ledger"
"""
    found = config_of(tmp_path, settings)
    assert conninfo_to_dict(found["url"]) == {"service": "ledger", "passfile": "/pass"}


@pytest.mark.parametrize(
    ("alias", "message"),
    [
        ("ledgr", "pgleader_django_database = 'ledgr': must be the alias of a database in DATABASES (default, other)"),
        ("other", "pgleader_django_database = 'other': must be a Postgres database, not sqlite"),
        (7, "pgleader_django_database = 7: must be the alias of a database in DATABASES (default, other)"),
        ([], "pgleader_django_database = []: must be the alias of a database in DATABASES (default, other)"),
    ],
)
def test_unsuitable_database_is_refused(tmp_path: Path, alias: object, message: str) -> None:
    """In one line; the default one is not taken for it."""
    settings = f"""
DATABASES = {{
    "default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}},
    "other": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}},
}}
CELERY_PGLEADER_DJANGO_DATABASE = {alias!r}
"""
    assert config_of(tmp_path, settings)["error"] == message


def test_settings_without_a_module_are_read(tmp_path: Path) -> None:
    """A program may configure Django by itself."""
    script = """
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}})
from celery import Celery
from celery_pgleader.config import Config
print(Config.from_app(Celery("shop")).database_url)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "CELERY_", "DJANGO_"))}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "dbname=shop\n"


def test_process_without_django_does_not_import_it() -> None:
    """Nor does one that only looks for a database."""
    script = """
import sys
from celery import Celery
from celery_pgleader.config import Config
try:
    Config.from_app(Celery("shop"))
except ValueError:
    pass
print("django.conf" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout == b"False\n"


def test_database_url_takes_precedence_over_the_default_database(tmp_path: Path) -> None:
    """Who names a database means it."""
    settings = """
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}}
CELERY_PGLEADER_DATABASE_URL = "host=elsewhere"
"""
    assert config_of(tmp_path, settings)["url"] == "host=elsewhere"


@pytest.mark.parametrize("database", ['{"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}', "{}"])
def test_other_kind_of_database_is_not_used(tmp_path: Path, database: str) -> None:
    """A project on SQLite, or on nothing, has to name one."""
    found = config_of(tmp_path, f'DATABASES = {{"default": {database}}}')
    assert found["error"].startswith("pgleader_database_url is not set")
