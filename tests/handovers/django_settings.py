"""A Django project that keeps its schedule in the database of the handovers."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

_parts = conninfo_to_dict(os.environ["HANDOVERS_DATABASE"])

SECRET_KEY = "handovers"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _parts["dbname"],
        "USER": _parts["user"],
        "HOST": _parts["host"],
        "PORT": _parts["port"],
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
