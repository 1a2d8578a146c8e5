"""A Django project that keeps its schedule in the database of the ledger, or the ledger in another one."""

from __future__ import annotations

import os
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from tests.chaos.scenarios import current


def _database(url: str) -> dict[str, Any]:
    parts = conninfo_to_dict(url)
    names = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
    return {"ENGINE": "django.db.backends.postgresql", **{name: parts[key] for name, key in names.items()}}


SECRET_KEY = "chaos"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DATABASES = {"default": _database(os.environ["CHAOS_STORE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
if current().scheduler == "django-two-databases":
    DATABASES["ledger"] = _database(os.environ["CHAOS_DATABASE"])
    INSTALLED_APPS += ["celery_pgleader.django"]
    CELERY_PGLEADER_DJANGO_DATABASE = "ledger"
