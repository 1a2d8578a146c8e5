"""The steps of the schema as migrations of Django's. Each has the name of its `.sql`, in `celery_pgleader/store`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from django.apps import apps
from django.db import router
from django.db.migrations import CreateModel, Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState

from celery_pgleader.django.alias import ledger_alias
from celery_pgleader.store import schema
from celery_pgleader.store.sql import APPLIED, MIGRATION_LOCK_OF_TRANSACTION, SCHEMA_STATE, VERSIONS

LABEL = "pgleader"


def migration(module: str) -> type[Migration]:
    """Return the migration for the step that a module is named after."""
    steps = {PurePath(step.name).stem: step for step in schema.migrations()}
    name = module.rpartition(".")[2]
    names = list(steps)
    before = names[: names.index(name)][-1:]
    attributes = {
        "dependencies": [(LABEL, earlier) for earlier in before],
        # Django would offer to create what it has not heard of.
        "operations": [RunStep(steps[name]), *([] if before else _models())],
    }
    return type("Migration", (Migration,), attributes)


class RunStep(Operation):
    """Runs a step where the ledger is, unless a worker or `celery pgleader migrate` has done so."""

    reversible = False
    reduces_to_sql = True

    def __init__(self, step: schema.Migration) -> None:
        """Prepare."""
        self._step = step

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing that Django keeps account of."""

    def database_forwards(self, app_label: str, schema_editor: Any, _from_state: Any, _to_state: Any) -> None:
        """Run it, and write down that it was run."""
        connection = schema_editor.connection
        if connection.vendor != "postgresql" or connection.alias != ledger_alias():
            return
        if not router.allow_migrate(connection.alias, app_label):
            return
        if schema_editor.collect_sql:
            schema_editor.execute(self._step.text, params=None)
            schema_editor.execute(schema.as_applied(self._step), params=None)
            return
        with connection.cursor() as cursor:
            # Of the transaction, since Django's connections may lead through a pooler.
            cursor.execute(MIGRATION_LOCK_OF_TRANSACTION, {"classid": schema.LOCK_CLASSID})
            cursor.execute(SCHEMA_STATE)
            versions = []
            if cursor.fetchone()[0]:
                cursor.execute(VERSIONS)
                versions = [version for (version,) in cursor.fetchall()]
            if self._step.version not in versions:
                cursor.execute(self._step.text)
                cursor.execute(APPLIED, {"version": self._step.version})

    def describe(self) -> str:
        """Return what `manage.py migrate --plan` shows."""
        return f"Runs {self._step.name} of celery-pgleader"


def _models() -> list[CreateModel]:
    states = [ModelState.from_model(model) for model in apps.get_app_config(LABEL).get_models()]
    return [CreateModel(state.name, list(state.fields.items()), state.options, state.bases) for state in states]
