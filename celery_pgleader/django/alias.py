"""Which of Django's databases holds the ledger."""

from __future__ import annotations

import os

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS


def ledger_alias() -> str:
    """Return its alias in `DATABASES`: that of the setting, or else `default`."""
    configured: str = getattr(settings, "CELERY_PGLEADER_DJANGO_DATABASE", DEFAULT_DB_ALIAS)
    return os.environ.get("PGLEADER_DJANGO_DATABASE") or configured
