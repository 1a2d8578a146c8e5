"""A session for a command: opened, or the reason said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from psycopg import Error
from psycopg.errors import InsufficientPrivilege, InvalidSchemaName, UndefinedColumn, UndefinedFunction, UndefinedTable

from celery_pgleader.config import Config
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.operators.words import first_line
from celery_pgleader.postgres import Session, open_session

EX_UNAVAILABLE, EX_NOPERM = 69, 77
# Seconds for which a command waits for its answers.
PATIENCE = 60.0


class Unavailable(click.ClickException):
    """The database cannot be asked."""

    exit_code = EX_UNAVAILABLE


class NotPermitted(click.ClickException):
    """The role may not do it."""

    exit_code = EX_NOPERM


def config_of(app: Any) -> Config:
    """Return an app's configuration, or end the command in one line."""
    try:
        return Config.from_app(app)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def asking(app: Any, *, pooled: bool = False, patience: float | None = None) -> Iterator[Session]:
    """Give a session with an app's database; what goes wrong ends the command in one line.

    Args:
        app: the Celery app.
        pooled: whether it would do if each statement were executed in another session.
        patience: seconds after which a server that does not answer is given up; by default a minute.

    """
    config = config_of(app)
    try:
        with (
            open_session(config.database_url, "pgleader cli", unresponsive_after=config.ttl, pooled=pooled) as session,
            session.bounded(PATIENCE if patience is None else patience),
        ):
            yield session
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    except InsufficientPrivilege as error:
        raise NotPermitted(f"this role may not: {first_line(error)}") from error
    except (UndefinedTable, UndefinedColumn, UndefinedFunction, InvalidSchemaName) as error:
        raise Unavailable(f"{first_line(error)}; has `pgleader migrate` been run?") from error
    except Error as error:
        raise Unavailable(f"cannot ask {config.database}: {first_line(error)}") from error
