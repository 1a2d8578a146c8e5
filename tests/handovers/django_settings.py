"""A Django project that keeps its schedule in the database of the handovers, or the ledger in another one."""

from __future__ import annotations

import os
from typing import Any

from psycopg.conninfo import conninfo_to_dict


def _database(url: str) -> dict[str, Any]:
    parts = conninfo_to_dict(url)
    names = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
    return {"ENGINE": "django.db.backends.postgresql", **{name: parts[key] for name, key in names.items()}}


SECRET_KEY = "handovers"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DATABASES = {"default": _database(os.environ["HANDOVERS_STORE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
if os.environ["HANDOVERS_SCHEDULER"] == "django-two-databases":
    DATABASES["ledger"] = _database(os.environ["HANDOVERS_DATABASE"])
    INSTALLED_APPS += ["celery_pgleader.django"]
    CELERY_PGLEADER_DJANGO_DATABASE = "ledger"
