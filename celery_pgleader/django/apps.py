"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class LedgerConfig(AppConfig):
    """What Django knows the ledger by."""

    name = "celery_pgleader.django"
    label = "pgleader"
    verbose_name = "celery-pgleader"
    default_auto_field = "django.db.models.BigAutoField"
