"""A Django project that keeps its schedule in the database of the ledger, or the ledger in another one."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

from tests.chaos.scenarios import current

SECRET_KEY = "chaos"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
URLS = {"default": os.environ["CHAOS_STORE"]}
if current().scheduler == "django-two-databases":
    URLS["ledger"] = os.environ["CHAOS_DATABASE"]
    INSTALLED_APPS += ["celery_pgleader.django"]
    CELERY_PGLEADER_DJANGO_DATABASE = "ledger"
NAMES = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
DATABASES = {
    alias: {
        "ENGINE": "django.db.backends.postgresql",
        **{name: conninfo_to_dict(url)[key] for name, key in NAMES.items()},
    }
    for alias, url in URLS.items()
}
