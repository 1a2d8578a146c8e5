"""A Django project that keeps its schedule in Postgres, for django-celery-beat."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

url = urlsplit(os.environ["BENCH_DATABASE"])

SECRET_KEY = "bench"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path[1:],
        "USER": url.username,
        "HOST": url.hostname,
        "PORT": url.port,
    }
}
