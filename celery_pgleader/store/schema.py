"""The schema `pgleader`, and its numbered migrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files

from psycopg import OperationalError, sql
from psycopg.errors import InsufficientPrivilege

from celery_pgleader.errors import ServerUnsuitable
from celery_pgleader.postgres import Session
from celery_pgleader.store import sql as statements

# Beside those of the election, see election.lock_key.
LOCK_CLASSID = 0x70676C40
PATIENCE = 60.0

GRANTS = """\
grant usage on schema pgleader to {role};
grant select, insert, update, delete on all tables in schema pgleader to {role};
"""


@dataclass(frozen=True)
class Migration:
    """One numbered step of the schema.

    Attributes:
        version: its number; steps are applied in order.
        name: of its file.
        text: what it does, for a DBA to read.

    """

    version: int
    name: str
    text: str


def migrations() -> list[Migration]:
    """Return all steps, in order."""
    found = (file for file in files(__package__).joinpath("migrations").iterdir() if file.name.endswith(".sql"))
    steps = (Migration(int(file.name.split("_")[0]), file.name, file.read_text("utf-8")) for file in found)
    return sorted(steps, key=lambda step: step.version)


class Schema:
    """The schema in one database, seen through a session of a role."""

    def __init__(self, session: Session) -> None:
        """Look through an open session."""
        self._session = session

    def ensure(self) -> None:
        """Apply what is missing, if the role may, and check that the role can work with the tables.

        Raises:
            ServerUnsuitable: it may not; the message says what to run.

        """
        with self._session.bounded(PATIENCE):
            try:
                missing = self.pending()
            except InsufficientPrivilege:
                raise ServerUnsuitable(self._says("may not be used by role {role}")) from None
            try:
                if missing:
                    self.migrate()
            except InsufficientPrivilege:
                raise ServerUnsuitable(self._says("is missing or old, and role {role} may not change it")) from None
            try:
                allowed = self._session.execute(statements.RIGHTS).fetchone()
            except InsufficientPrivilege:
                allowed = None
            if not allowed or not allowed[0]:
                raise ServerUnsuitable(self._says("may not be used by role {role}"))

    def pending(self) -> list[Migration]:
        """Return the steps that have not been applied."""
        applied = self._applied()
        return [step for step in migrations() if step.version not in applied]

    def migrate(self) -> list[Migration]:
        """Apply what is missing, in one transaction; return what was.

        Raises:
            InsufficientPrivilege: the role may not.

        """
        self._session.execute(statements.MIGRATION_LOCK, {"classid": LOCK_CLASSID})
        try:
            with self._session.transaction():
                steps = self.pending()
                for step in steps:
                    self._session.execute(step.text.encode())
                    self._session.execute(statements.APPLIED, {"version": step.version})
        finally:
            # If the session has failed, the lock is gone with it.
            with suppress(OperationalError):
                self._session.execute(statements.MIGRATION_UNLOCK, {"classid": LOCK_CLASSID})
        return steps

    def _applied(self) -> set[int]:
        row = self._session.execute(statements.SCHEMA_STATE).fetchone()
        if row is None or not row[0]:
            return set()
        return {version for (version,) in self._session.execute(statements.VERSIONS)}

    def _says(self, what: str) -> str:
        row = self._session.execute(statements.SCHEMA_STATE).fetchone()
        assert row is not None
        role, database = row[2], row[3]
        return (
            f"schema pgleader in database {database} {what.format(role=role)}: as a role that may, run"
            f" `celery -A <app> pgleader migrate --role {role}`, or have a DBA run what"
            f" `celery -A <app> pgleader migrate --sql --role {role}` prints"
        )


def script(steps: Sequence[Migration], role: str | None = None) -> Iterator[str]:
    """Give steps of the schema as a script for psql.

    Args:
        steps: those that are missing.
        role: who is to be granted what workers need; by default nobody.

    """
    yield "begin;\n"
    for step in steps:
        yield f"-- {step.name}\n{step.text}\n{as_applied(step)};\n"
    if role:
        yield grants(role).as_string()
    yield "commit;\n"


def as_applied(step: Migration) -> str:
    """Return the statement that writes down that a step was applied, for a script."""
    return sql.SQL("insert into pgleader.migrations (version) values ({})").format(step.version).as_string()


def grants(role: str) -> sql.Composed:
    """Return the statements that grant a role what workers need."""
    return sql.SQL(GRANTS).format(role=sql.Identifier(role))
